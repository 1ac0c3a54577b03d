"""The commands of ``ozaki``, a file each."""

// What every loop begins with. T is a number, V one for each of W chains; M says yes or no for each.
#include <cmath>
#include <cstdint>
#include <limits>

typedef OZAKI_T T;
enum { W = OZAKI_W };
typedef T V __attribute__((vector_size(OZAKI_W * sizeof(T))));
typedef decltype(V{} < V{}) M;
typedef int64_t L;
#define LANES for (int l = 0; l < W; l++)

static inline V B(T x) { return x - V{}; }
static inline M BM(bool b) { return M{} - b; }

// Memory for vectors, as long as a loop runs.
struct Heap {
  V* start;
  explicit Heap(L count) : start(new V[count]) {}
  ~Heap() { delete[] start; }
};

template <class A> static inline A one(A) { return A{} + 1; }
template <class A> static inline A zero(A) { return A{}; }
static inline T inf(T) { return std::numeric_limits<T>::infinity(); }
static inline V inf(V) { return B(inf(T{})); }
template <class A> static inline A sel(bool m, A a, A b) { return m ? a : b; }
static inline V sel(M m, V a, V b) { return m ? a : b; }
static inline M sel(M m, M a, M b) { return (m & a) | (~m & b); }
template <class A> static inline A and_(A a, A b) { return a & b; }
template <class A> static inline A or_(A a, A b) { return a | b; }
template <class A> static inline A xor_(A a, A b) { return a ^ b; }
static inline bool not_(bool a) { return !a; }
static inline M not_(M a) { return ~a; }
static inline L not_(L a) { return ~a; }
// what is not a number is handed on
template <class A> static inline A max_(A a, A b) { return sel((a > b) | (a != a), a, b); }
template <class A> static inline A min_(A a, A b) { return sel((a < b) | (a != a), a, b); }
template <class A> static inline A sq(A a) { return a * a; }
static inline T asfloat(bool b) { return b; }
static inline T asfloat(L a) { return (T)a; }
static inline V asfloat(M m) { return sel(m, B(1), B(0)); }
static inline L asint(bool b) { return b; }
static inline L asint(T a) { return (L)a; }
static inline L at(L i, L size) { return i < 0 ? i + size : i; }

#define ALONG(name, f) \
  static inline T name(T a) { return f(a); } \
  static inline V name(V a) { V r; LANES r[l] = f(a[l]); return r; }
ALONG(abs_, std::fabs)
ALONG(sqrt_, std::sqrt)
ALONG(floor_, std::floor)
ALONG(ceil_, std::ceil)
ALONG(trunc_, std::trunc)
ALONG(round_, std::nearbyint)
ALONG(lgamma_, std::lgamma)
static inline T fmod_(T a, T b) { return std::fmod(a, b); }
static inline L fmod_(L a, L b) { return a % b; }
static inline V fmod_(V a, V b) { V r; LANES r[l] = std::fmod(a[l], b[l]); return r; }
template <class A> static inline A remainder_(A a, A b) {
  const A r = fmod_(a, b);
  return sel((r != A{}) & ((r < A{}) != (b < A{})), r + b, r);
}
static inline L abs_(L a) { return a < 0 ? -a : a; }

#ifdef OZAKI_SLEEF
#define FAST(name, f, sleef) \
  extern "C" V sleef(V); \
  static inline T name(T a) { return f(a); } \
  static inline V name(V a) { return sleef(a); }
#define FAST2(name, f, sleef) \
  extern "C" V sleef(V, V); \
  static inline T name(T a, T b) { return f(a, b); } \
  static inline V name(V a, V b) { return sleef(a, b); }
#else
#define FAST(name, f, sleef) ALONG(name, f)
#define FAST2(name, f, sleef) \
  static inline T name(T a, T b) { return f(a, b); } \
  static inline V name(V a, V b) { V r; LANES r[l] = f(a[l], b[l]); return r; }
#endif
#define PASTE(a, b, c) a##b##c
#define SLEEF(name, kind, error) PASTE(Sleef_##name, kind, error)
FAST(exp_, std::exp, SLEEF(exp, OZAKI_KIND, _u10))
FAST(exp2_, std::exp2, SLEEF(exp2, OZAKI_KIND, _u10))
FAST(expm1_, std::expm1, SLEEF(expm1, OZAKI_KIND, _u10))
FAST(log_, std::log, SLEEF(log, OZAKI_KIND, _u10))
FAST(log1p_, std::log1p, SLEEF(log1p, OZAKI_KIND, _u10))
FAST(log2_, std::log2, SLEEF(log2, OZAKI_KIND, _u10))
FAST(log10_, std::log10, SLEEF(log10, OZAKI_KIND, _u10))
FAST(sin_, std::sin, SLEEF(sin, OZAKI_KIND, _u10))
FAST(cos_, std::cos, SLEEF(cos, OZAKI_KIND, _u10))
FAST(tan_, std::tan, SLEEF(tan, OZAKI_KIND, _u10))
FAST(asin_, std::asin, SLEEF(asin, OZAKI_KIND, _u10))
FAST(acos_, std::acos, SLEEF(acos, OZAKI_KIND, _u10))
FAST(atan_, std::atan, SLEEF(atan, OZAKI_KIND, _u10))
FAST(sinh_, std::sinh, SLEEF(sinh, OZAKI_KIND, _u10))
FAST(cosh_, std::cosh, SLEEF(cosh, OZAKI_KIND, _u10))
FAST(tanh_, std::tanh, SLEEF(tanh, OZAKI_KIND, _u10))
FAST(asinh_, std::asinh, SLEEF(asinh, OZAKI_KIND, _u10))
FAST(acosh_, std::acosh, SLEEF(acosh, OZAKI_KIND, _u10))
FAST(atanh_, std::atanh, SLEEF(atanh, OZAKI_KIND, _u10))
FAST(erf_, std::erf, SLEEF(erf, OZAKI_KIND, _u10))
FAST(erfc_, std::erfc, SLEEF(erfc, OZAKI_KIND, _u15))
FAST2(atan2_, std::atan2, SLEEF(atan2, OZAKI_KIND, _u10))
FAST2(pow_, std::pow, SLEEF(pow, OZAKI_KIND, _u10))

static inline V load(const T* p, const L* q, L apart) { V r; LANES r[l] = p[q[l] * apart]; return r; }
static inline M load(const uint8_t* p, const L* q, L apart) {
  M r;
  LANES r[l] = -(p[q[l] * apart] != 0);
  return r;
}
static inline void store(T* p, L apart, V a, int valid) {
  if (valid == W) LANES p[l * apart] = a[l];
  else for (int l = 0; l < valid; l++) p[l * apart] = a[l];
}
static inline void store(uint8_t* p, L apart, M a, int valid) {
  for (int l = 0; l < valid; l++) p[l * apart] = a[l] != 0;
}
static inline T total(V a, int valid) { T r = 0; for (int l = 0; l < valid; l++) r += a[l]; return r; }

static inline bool some(bool m) { return m; }
static inline bool some(M m) { bool r = false; LANES r |= m[l] != 0; return r; }

// The lower factor of a matrix, of which the lower half is read; not a number where there is none.
template <class A> static inline void cholesky(L n, const A* a, A* f) {
  for (L j = 0; j < n; j++) {
    A d = a[j * n + j];
    for (L k = 0; k < j; k++) d -= f[j * n + k] * f[j * n + k];
    d = sqrt_(d);
    f[j * n + j] = d;
    const A r = one(d) / d;
    L i = j + 1;
    for (; i + 4 <= n; i += 4) {
      A s0 = a[i * n + j], s1 = a[(i + 1) * n + j], s2 = a[(i + 2) * n + j], s3 = a[(i + 3) * n + j];
      for (L k = 0; k < j; k++) {
        const A x = f[j * n + k];
        s0 -= f[i * n + k] * x;
        s1 -= f[(i + 1) * n + k] * x;
        s2 -= f[(i + 2) * n + k] * x;
        s3 -= f[(i + 3) * n + k] * x;
      }
      f[i * n + j] = s0 * r;
      f[(i + 1) * n + j] = s1 * r;
      f[(i + 2) * n + j] = s2 * r;
      f[(i + 3) * n + j] = s3 * r;
    }
    for (; i < n; i++) {
      A s = a[i * n + j];
      for (L k = 0; k < j; k++) s -= f[i * n + k] * f[j * n + k];
      f[i * n + j] = s * r;
    }
    for (L k = j + 1; k < n; k++) f[j * n + k] = A{};
  }
}

// Solve a x = b in place, a triangular with entries apart by s0 along rows and s1 along columns.
template <class Z, class A>
static inline void solve(L n, L columns, const Z* a, L s0, L s1, A* x, bool upper, bool unit) {
  for (L e = 0; e < n; e++) {
    const L j = upper ? n - 1 - e : e;
    A* row = x + j * columns;
    if (!unit) {
      const Z r = one(Z{}) / a[j * s0 + j * s1];
      for (L c = 0; c < columns; c++) row[c] *= r;
    }
    const L first = upper ? 0 : j + 1, last = upper ? j : n;
    for (L i = first; i < last; i++) {
      const Z w = a[i * s0 + j * s1];
      A* other = x + i * columns;
      for (L c = 0; c < columns; c++) other[c] -= w * row[c];
    }
  }
}

// Jacobi's rotations: values, smallest first, and vectors in columns of a symmetric matrix, which
// is spoiled.
template <class A> static inline void eigh(L n, A* a, A* values, A* v) {
  for (L i = 0; i < n * n; i++) v[i] = i % (n + 1) ? A{} : one(A{});
  const T eps = std::numeric_limits<T>::epsilon();
  for (int sweep = 0; sweep < 30; sweep++) {
    A off{}, on{};
    for (L p = 0; p < n; p++) {
      on += a[p * n + p] * a[p * n + p];
      for (L q = 0; q < p; q++) off += a[p * n + q] * a[p * n + q];
    }
    if (!some(off > on * (eps * eps))) break;
    for (L p = 0; p < n; p++)
      for (L q = p + 1; q < n; q++) {
        const A x = a[q * n + p];
        const A theta = (a[q * n + q] - a[p * n + p]) / (x + x);
        A t = one(x) / (abs_(theta) + sqrt_(theta * theta + one(x)));
        t = sel(theta < A{}, -t, t);
        t = sel(x == A{}, A{}, t);
        const A c = one(x) / sqrt_(t * t + one(x)), s = t * c;
        for (L k = 0; k < n; k++) {
          const A y = a[k * n + p], z = a[k * n + q];
          a[k * n + p] = c * y - s * z;
          a[k * n + q] = s * y + c * z;
        }
        for (L k = 0; k < n; k++) {
          const A y = a[p * n + k], z = a[q * n + k];
          a[p * n + k] = c * y - s * z;
          a[q * n + k] = s * y + c * z;
        }
        a[p * n + q] = a[q * n + p] = sel(x == x, A{}, x);
        for (L k = 0; k < n; k++) {
          const A y = v[k * n + p], z = v[k * n + q];
          v[k * n + p] = c * y - s * z;
          v[k * n + q] = s * y + c * z;
        }
      }
  }
  for (L i = 0; i < n; i++) values[i] = a[i * n + i];
  for (L i = 0; i < n; i++)
    for (L j = i + 1; j < n; j++) {
      const auto swap = values[j] < values[i];
      const A low = sel(swap, values[j], values[i]), high = sel(swap, values[i], values[j]);
      values[i] = low;
      values[j] = high;
      for (L k = 0; k < n; k++) {
        const A y = v[k * n + i], z = v[k * n + j];
        v[k * n + i] = sel(swap, z, y);
        v[k * n + j] = sel(swap, y, z);
      }
    }
}

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

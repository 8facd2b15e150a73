// N:M selection on the CPU: round, rank and prune in one read of the weight. C ABI, for ctypes.
//
// Everything is ranked on float32 bits: FP16 and BF16 values are exact in float32 and their order
// is that of the magnitude bits. A tile of groups is laid out as planes (plane j holds element j of
// every group), so that each step is one vector operation over many groups.
//
// No state is kept. Groups are split over threads of OpenMP, which are PyTorch's own.

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#error "needs the vector extensions of GCC or Clang"
#endif
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Quad{__VA_ARGS__})
#endif

namespace {

typedef int32_t Quad __attribute__((vector_size(16)));
#if defined(__x86_64__)
typedef int32_t Vector __attribute__((vector_size(32)));
#else
typedef int32_t Vector __attribute__((vector_size(16)));
#endif
constexpr int64_t LANES = sizeof(Vector) / sizeof(int32_t);

enum { FLOAT16, BFLOAT16, FLOAT32 };  // the codes of algorithms.native.kernels

constexpr int64_t TILE = 8192;   // elements: 32 KiB of planes
constexpr int64_t SLACK = 16;    // columns that vectors may touch past the end of a plane
constexpr int64_t WIDE = 64;     // rows at least this long are planes as they are
constexpr int64_t CHUNK = 128;   // columns between two rounds of fetching ahead
constexpr int MAX_M = 255;
constexpr int64_t STREAM = int64_t(32) << 20;  // bytes of output that no cache will hold

constexpr int32_t SIGN = INT32_MIN, MAGNITUDE = INT32_MAX;
constexpr int32_t INFINITE = 0x7F800000, QUIET = 0x7FC00000;

INLINE int32_t bits_of(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float value_of(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// ---- rounding: float32 bits to float32 bits; no step makes or reads a subnormal float ----

INLINE int32_t canonical(int32_t bits) {
    return (bits & MAGNITUDE) > INFINITE ? (bits & SIGN) | QUIET : bits;
}

INLINE int32_t round_half(int32_t bits) {
    const int32_t magnitude = bits & MAGNITUDE;
    // Adding 2^(e + 13) leaves ten bits of fraction, and as many as a subnormal has below 2^-14.
    const int32_t exponent = magnitude & INFINITE;
    const int32_t from = exponent < 0x38800000 ? 0x38800000 : exponent;
    const float magic = value_of(int32_t(uint32_t(from) + (13u << 23)));  // unsigned: Inf wraps
    int32_t rounded = bits_of((value_of(magnitude) + magic) - magic);
    rounded = magnitude >= 0x477FF000 ? INFINITE : rounded;  // 65520 and above
    rounded = magnitude > INFINITE ? QUIET : rounded;
    return rounded | (bits & SIGN);
}

INLINE int32_t round_bfloat(int32_t bits) {
    const int32_t magnitude = bits & MAGNITUDE;
    const int32_t even = (magnitude >> 16) & 1;
    // Unsigned, because a NaN may carry into the sign before it is replaced.
    int32_t rounded = int32_t((uint32_t(magnitude) + 0x7FFFu + uint32_t(even)) & 0xFFFF0000u);
    rounded = magnitude > INFINITE ? QUIET : rounded;
    return rounded | (bits & SIGN);
}

INLINE int32_t widen_half(uint16_t half) {
    const int32_t magnitude = half & 0x7FFF, sign = int32_t(uint32_t(half & 0x8000) << 16);
    int32_t wide = (magnitude << 13) + (112 << 23);
    wide = magnitude < 0x400 ? bits_of(float(magnitude) * 0x1p-24f) : wide;
    wide = magnitude >= 0x7C00 ? (magnitude << 13) | INFINITE : wide;
    return wide | sign;
}

INLINE int32_t widen_bfloat(uint16_t bits) { return int32_t(uint32_t(bits) << 16); }

template <class Source, class Convert>
INLINE void convert(const void* source, int32_t* to, int64_t count, Convert one) {
    const Source* from = static_cast<const Source*>(source);
    INDEPENDENT
    for (int64_t i = 0; i < count; ++i) to[i] = one(from[i]);
}

#define EACH(type, expression) \
    convert<type>( \
        source, to, count, [](type x) __attribute__((always_inline)) { return expression; })

// `count` elements of the source type as float32 bits of their rounding. NaNs that a conversion
// makes are canonical; an operand that has the rounding type already keeps its own bits.
CLONES void round_run(const void* source, int32_t* to, int64_t count, int kind, int rounding) {
    switch (kind * 3 + rounding) {
        case FLOAT16 * 3 + FLOAT16: EACH(uint16_t, widen_half(x)); break;
        case FLOAT16 * 3 + BFLOAT16: EACH(uint16_t, round_bfloat(widen_half(x))); break;
        case FLOAT16 * 3 + FLOAT32: EACH(uint16_t, canonical(widen_half(x))); break;
        case BFLOAT16 * 3 + FLOAT16: EACH(uint16_t, round_half(widen_bfloat(x))); break;
        case BFLOAT16 * 3 + BFLOAT16: EACH(uint16_t, widen_bfloat(x)); break;
        case BFLOAT16 * 3 + FLOAT32: EACH(uint16_t, canonical(widen_bfloat(x))); break;
        case FLOAT32 * 3 + FLOAT16: EACH(int32_t, round_half(x)); break;
        case FLOAT32 * 3 + BFLOAT16: EACH(int32_t, round_bfloat(x)); break;
        default: std::memcpy(to, source, size_t(count) * sizeof(int32_t));
    }
}

// ---- selection on planes ----

INLINE Vector load(const int32_t* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store(int32_t* to, Vector value) { std::memcpy(to, &value, sizeof value); }

INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }
INLINE Vector smaller(Vector a, Vector b) { return a > b ? b : a; }

// Replaces each of `rows` planes by its kept elements, with +0 or (`fill` = -1) with -1 and 0.
// The n largest are found by insertion into n sorted registers; N is n, or 0 for any n.
// SPARE: the low 13 bits of every value are zero, so a key can end in the order of its index and no
// two are equal. Otherwise ties at the n-th largest are handed out by index afterwards.
template <int N, bool SPARE>
INLINE void select_columns(
    int32_t* tile, int64_t stride, int64_t width, int rows, int n_any, int32_t fill) {
    const int n = N ? N : n_any;
    Vector held[N ? N : MAX_M];
    for (int64_t column = 0; column < width; column += LANES) {
        for (int k = 0; k < n; ++k) held[k] = Vector{} - 1;  // below every key
        int32_t* at = tile + column;
        Vector order = Vector{} + MAX_M;  // MAX_M - j
        for (int j = 0; j < rows; ++j, order -= 1) {
            Vector key = load(at + j * stride) & MAGNITUDE;
            if (SPARE) key |= order;
#pragma GCC unroll 8
            for (int k = 0; k < n; ++k) {
                const Vector low = smaller(held[k], key);
                held[k] = larger(held[k], key);
                key = low;
            }
        }
        const Vector last = held[n - 1];
        Vector left = Vector{} + n;  // ties that may still be kept
        if (!SPARE)
            for (int j = 0; j < rows; ++j) left += (load(at + j * stride) & MAGNITUDE) > last;
        order = Vector{} + MAX_M;
        for (int j = 0; j < rows; ++j, order -= 1) {
            const Vector value = load(at + j * stride);
            const Vector magnitude = value & MAGNITUDE;
            Vector kept;
            if (SPARE) {
                kept = (magnitude | order) >= last;
            } else {
                const Vector tied = (magnitude == last) & (left > 0);
                left += tied;
                kept = (magnitude > last) | tied;
            }
            store(at + j * stride, (value | fill) & kept);
        }
    }
}

#define SELECT(N) \
    spare ? select_columns<N, true>(tile, stride, width, rows, n, fill) \
          : select_columns<N, false>(tile, stride, width, rows, n, fill)

CLONES void select_planes(
    int32_t* tile, int64_t stride, int64_t width, int rows, int n, bool spare, int32_t fill) {
    switch (n) {
        case 1: SELECT(1); break;
        case 2: SELECT(2); break;
        case 3: SELECT(3); break;
        case 4: SELECT(4); break;
        case 8: SELECT(8); break;
        default: SELECT(0);
    }
}

// ---- between the order of memory and planes, for short rows ----

INLINE void transpose(Quad& a, Quad& b, Quad& c, Quad& d) {
    const Quad ab = SHUFFLE(a, b, 0, 4, 1, 5), ab_high = SHUFFLE(a, b, 2, 6, 3, 7);
    const Quad cd = SHUFFLE(c, d, 0, 4, 1, 5), cd_high = SHUFFLE(c, d, 2, 6, 3, 7);
    a = SHUFFLE(ab, cd, 0, 1, 4, 5);
    b = SHUFFLE(ab, cd, 2, 3, 6, 7);
    c = SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
    d = SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
}

// Past the caches if `stream`, which saves reading the lines first; `to` is aligned then.
INLINE void put(int32_t* to, Quad value, [[maybe_unused]] bool stream) {
#if defined(__SSE2__)
    if (stream) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)value);
#endif
    std::memcpy(to, &value, sizeof value);
}

// Four by four elements from rows `from_stride` apart to rows `to_stride` apart.
INLINE void transpose_block(
    const int32_t* from, int64_t from_stride, int32_t* to, int64_t to_stride, bool stream) {
    Quad row[4];
    for (int k = 0; k < 4; ++k) std::memcpy(&row[k], from + k * from_stride, sizeof(Quad));
    transpose(row[0], row[1], row[2], row[3]);
    for (int k = 0; k < 4; ++k) put(to + k * to_stride, row[k], stream);
}

// Copies whole vectors: what lands past `count` is overwritten by a later row, or is slack.
INLINE void copy_over(const int32_t* from, int32_t* to, int64_t count) {
    for (int64_t k = 0; k < count; k += LANES) store(to + k, load(from + k));
}

CLONES void to_planes(
    const int32_t* linear, int32_t* tile, int64_t stride, int64_t slabs, int rows, int64_t inner) {
    if (inner == 1 && rows % 4 == 0) {
        for (int64_t s = 0; s < slabs; s += 4)
            for (int j = 0; j < rows; j += 4)
                transpose_block(linear + s * rows + j, rows, tile + j * stride + s, stride, false);
    } else if (inner == 1) {
        for (int j = 0; j < rows; ++j)
            for (int64_t s = 0; s < slabs; ++s) tile[j * stride + s] = linear[s * rows + j];
    } else {
        for (int64_t s = 0; s < slabs; ++s)
            for (int j = 0; j < rows; ++j, linear += inner)
                copy_over(linear, tile + j * stride + s * inner, inner);
    }
}

CLONES void from_planes(
    const int32_t* tile, int32_t* linear, int64_t stride, int64_t slabs, int rows, int64_t inner,
    bool stream) {
    if (inner == 1 && rows % 4 == 0) {
        for (int64_t s = 0; s < slabs; s += 4)
            for (int j = 0; j < rows; j += 4)
                transpose_block(tile + j * stride + s, stride, linear + s * rows + j, rows, stream);
    } else if (inner == 1) {
        for (int64_t s = 0; s < slabs; ++s)
            for (int j = 0; j < rows; ++j) linear[s * rows + j] = tile[j * stride + s];
    } else {
        for (int64_t s = 0; s < slabs; ++s)  // upwards in `linear`, see copy_over
            for (int j = 0; j < rows; ++j, linear += inner)
                copy_over(tile + j * stride + s * inner, linear, inner);
    }
}

// ---- output ----

CLONES void emit_flags(const int32_t* from, uint8_t* to, int64_t count) {
    INDEPENDENT
    for (int64_t i = 0; i < count; ++i) to[i] = uint8_t(from[i] & 1);
}

bool aligned(const int32_t* to) { return reinterpret_cast<uintptr_t>(to) % sizeof(Quad) == 0; }

void emit_values(const int32_t* from, int32_t* to, int64_t count, bool stream) {
    if (stream) {
        while (count && !aligned(to)) *to++ = *from++, --count;
        for (; count >= 4; count -= 4, from += 4, to += 4) {
            Quad value;
            std::memcpy(&value, from, sizeof value);
            put(to, value, true);
        }
    }
    std::memcpy(to, from, size_t(count) * sizeof(int32_t));
}

void publish([[maybe_unused]] bool stream) {
#if defined(__SSE2__)
    if (stream) _mm_sfence();
#endif
}

int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Groups [begin, end) of the outer * ceil(length / m) of a contiguous (outer, length, inner)
// source, whose groups of m run along `length`. `out`: bool if `as_mask`, else float32.
// 1 <= n <= m <= 255.
void select_range(
    const void* source, void* out, int64_t outer, int64_t length, int64_t inner, int n, int m,
    int kind, int rounding, int as_mask, int64_t begin, int64_t end) {
    alignas(64) int32_t tile[TILE + (MAX_M + 1) * SLACK];
    alignas(64) int32_t linear[TILE + 4 * (MAX_M + 1)] = {};
    const int64_t bytes = kind == FLOAT32 ? 4 : 2;
    const bool spare = kind != FLOAT32 || rounding != FLOAT32;
    const bool stream = !as_mask && outer * length * inner * 4 >= STREAM;
    const int32_t fill = as_mask ? -1 : 0;
    const auto emit = [&](const int32_t* from, int64_t at, int64_t count) {
        if (as_mask) emit_flags(from, static_cast<uint8_t*>(out) + at, count);
        else emit_values(from, static_cast<int32_t*>(out) + at, count, stream);
    };
    const auto take = [&](int64_t at, int32_t* to, int64_t count) {
        round_run(static_cast<const char*>(source) + at * bytes, to, count, kind, rounding);
    };

    const int64_t whole = length / m, groups = (length + m - 1) / m;
    const int64_t columns = TILE / m / LANES * LANES, stride = columns + SLACK;
    std::memset(tile, 0, sizeof tile);
    for (int64_t unit = begin; unit < end;) {
        const int64_t group = unit % groups;
        const int64_t at = (unit / groups * length + group * m) * inner;
        // Zeros that pad a short group displace nobody: they are last among equals.
        const int rows = int(least(m, length - group * m));
        if (inner >= WIDE || inner > columns) {
            for (int64_t column = 0; column < inner; column += columns) {
                const int64_t width = least(columns, inner - column);
                for (int j = 0; j < rows; ++j)
                    take(at + j * inner + column, tile + j * stride, width);
                const int64_t next = column + width < inner ? column + width : rows * inner;
                const char* ahead = static_cast<const char*>(source) + (at + next) * bytes;
                // Rows lie pages apart, where no processor fetches ahead by itself.
                for (int64_t c = 0; c < width; c += CHUNK) {
                    for (int64_t j = 0; j < rows; ++j)
                        for (int64_t k = 0; k < CHUNK * bytes; k += 64)
                            __builtin_prefetch(ahead + (j * inner + c) * bytes + k);
                    select_planes(tile + c, stride, least(CHUNK, width - c), rows, n, spare, fill);
                }
                for (int j = 0; j < rows; ++j)
                    emit(tile + j * stride, at + j * inner + column, width);
            }
            ++unit;
            continue;
        }
        int64_t slabs = 1;
        if (rows == m) {
            slabs = whole == groups ? end - unit : least(end - unit, whole - group);
            slabs = least(slabs, columns / inner);
        }
        const int64_t count = slabs * rows * inner;
        take(at, linear, count);
        to_planes(linear, tile, stride, slabs, rows, inner);
        select_planes(tile, stride, slabs * inner, rows, n, spare, fill);
        if (inner == 1 && rows % 4 == 0 && slabs % 4 == 0 && !as_mask) {  // nothing past the end
            int32_t* to = static_cast<int32_t*>(out) + at;
            from_planes(tile, to, stride, slabs, rows, inner, stream && aligned(to));
        } else {
            from_planes(tile, linear, stride, slabs, rows, inner, false);
            emit(linear, at, count);
        }
        unit += slabs;
    }
    publish(stream);
}

// [0, units) in equal parts, one a thread. OpenMP, whose threads those of PyTorch then are.
template <class Run>
void divide(int64_t units, int threads, const Run& run) {
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int part = 0; part < threads; ++part)
        run(units * part / threads, units * (part + 1) / threads);
}

}  // namespace

extern "C" {

// Changes with the meaning of any argument below: a stale library must not be called.
int nm_abi() { return 2; }

// All groups of a contiguous (outer, length, inner) source, see select_range.
void nm_select(
    const void* source, void* out, int64_t outer, int64_t length, int64_t inner, int n, int m,
    int kind, int rounding, int as_mask, int threads) {
    divide(outer * ((length + m - 1) / m), threads, [&](int64_t begin, int64_t end) {
        select_range(source, out, outer, length, inner, n, m, kind, rounding, as_mask, begin, end);
    });
}

}  // extern "C"

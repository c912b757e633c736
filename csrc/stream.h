// Writes a long array front to back past the caches: whole lines that nobody reads soon need not be fetched first.
#pragma once

#include <algorithm>
#include <cstdint>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace ralign {

#ifdef __SSE2__

// `out` is aligned to T. What was appended is all there after finish().
template <typename T>
class Stream {
  public:
    explicit Stream(T* out) : out_(out) {
        const int64_t past = reinterpret_cast<uintptr_t>(out) % kLineBytes / sizeof(T);
        lead_ = past == 0 ? 0 : kPerLine - past;
    }

    void copy(const T* from, int64_t count) {
        append(count, [=](int64_t k) { return from[k]; },
               [=](int64_t k) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k)); });
    }

    void fill(T value, int64_t count) {
        alignas(16) T values[kPerVector];
        std::fill_n(values, kPerVector, value);
        const __m128i vector = _mm_load_si128(reinterpret_cast<const __m128i*>(values));
        append(count, [=](int64_t) { return value; }, [=](int64_t) { return vector; });
    }

    // first, first + 1, ...
    void count_up(T first, int64_t count) {
        static_assert(sizeof(T) == 8);
        const __m128i start = _mm_set_epi64x(first + 1, first);
        append(count, [=](int64_t k) { return first + k; },
               [=](int64_t k) { return _mm_add_epi64(start, _mm_set1_epi64x(k)); });
    }

    void finish() {
        out_ = std::copy_n(line(), held_, out_);
        held_ = 0;
        _mm_sfence();
    }

  private:
    static constexpr int64_t kLineBytes = 64, kPerLine = kLineBytes / sizeof(T), kPerVector = 16 / sizeof(T);

    // value(k) is the k-th of `count` elements, vector(k) 16 bytes of them from the k-th on.
    template <typename Value, typename Vector>
    void append(int64_t count, Value value, Vector vector) {
        int64_t k = 0;
        for (; lead_ > 0 && k < count; --lead_) *out_++ = value(k++);
        if (count - k < kPerLine) {
            while (k < count) {
                line()[held_++] = value(k++);
                if (held_ == kPerLine) write_line();
            }
            return;
        }
        if (held_ > 0) {  // fills the line, and some of what follows it
            hold(held_, k, vector);
            k += kPerLine - held_;
            write_line();
        }
        T* out = out_;
        for (; count - k >= kPerLine; k += kPerLine, out += kPerLine)
            for (int64_t j = 0; j < kPerLine; j += kPerVector)
                _mm_stream_si128(reinterpret_cast<__m128i*>(out + j), vector(k + j));
        out_ = out;
        held_ = count - k;  // the last so many elements, and some of what precedes the line
        hold(held_ - kPerLine, count - kPerLine, vector);
    }

    // A line's worth of elements from k on, to line()[at] and the following.
    template <typename Vector>
    void hold(int64_t at, int64_t k, Vector vector) {
        for (int64_t j = 0; j < kPerLine; j += kPerVector)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(line() + at + j), vector(k + j));
    }

    void write_line() {
        for (int64_t j = 0; j < kPerLine; j += kPerVector)
            _mm_stream_si128(reinterpret_cast<__m128i*>(out_ + j),
                             _mm_load_si128(reinterpret_cast<const __m128i*>(line() + j)));
        out_ += kPerLine;
        held_ = 0;
    }

    T* line() { return lines_ + kPerLine; }

    T* out_;
    int64_t lead_;                       // elements before the first whole line
    alignas(64) T lines_[3 * kPerLine];  // in the middle: elements that wait until their line is full
    int64_t held_ = 0;
};

#else

template <typename T>
class Stream {
  public:
    explicit Stream(T* out) : out_(out) {}
    void copy(const T* from, int64_t count) { out_ = std::copy_n(from, count, out_); }
    void fill(T value, int64_t count) { out_ = std::fill_n(out_, count, value); }
    void count_up(T first, int64_t count) {
        for (int64_t k = 0; k < count; ++k) *out_++ = first + k;
    }
    void finish() {}

  private:
    T* out_;
};

#endif

}  // namespace ralign

// Items filed under small integer keys; the smallest key at or above a given one is found in a few word operations.
#pragma once

#include <cstdint>
#include <utility>

#include "pool.h"

namespace ralign {

// Level 0 has a bit for each key that some item has, level k + 1 a bit for each word of level k that is not 0.
// Items of one key come out last in, first out. O(num_keys + num_items) memory.
class BucketQueue {
  public:
    static constexpr int32_t kNone = -1;

    struct Entry {
        int32_t item;
        int32_t key;
    };

    BucketQueue(int32_t num_keys, int64_t num_items) : head_(num_keys, kNone), next_(num_items) {
        words_.assign(num_keys / 63 + kMaxLevels, 0);  // 1/64 + 1/64^2 + ... = 1/63
        uint64_t* free = words_.data();
        for (int64_t words = num_keys; num_levels_ == 0 || words > 1; ++num_levels_) {
            words = (words + 63) / 64;
            level_[num_levels_] = std::exchange(free, free + words);
            num_words_[num_levels_] = static_cast<int32_t>(words);
        }
    }

    void push(int32_t item, int32_t key) {
        const int32_t before = head_[key];
        head_[key] = item;
        next_[item] = before;
        for (int k = 0; before == kNone && k < num_levels_; ++k, key >>= 6) {
            const uint64_t word = level_[k][key >> 6];
            level_[k][key >> 6] = word | uint64_t{1} << (key & 63);
            if (word != 0) break;
        }
    }

    // Takes out an item of the smallest key >= `wanted`; item kNone if there is none.
    Entry pop_at_least(int32_t wanted) {
        const int32_t key = find(wanted);
        if (key < 0) return {kNone, kNone};
        const int32_t item = head_[key];
        head_[key] = next_[item];
        int32_t at = key;
        for (int k = 0; head_[key] == kNone && k < num_levels_; ++k, at >>= 6) {
            const uint64_t word = level_[k][at >> 6] & ~(uint64_t{1} << (at & 63));
            level_[k][at >> 6] = word;
            if (word != 0) break;
        }
        return {item, key};
    }

  private:
    static constexpr int kMaxLevels = 6;  // 64^6 is more than an int32 holds

    int32_t find(int32_t at) const {
        for (int k = 0; k < num_levels_; ++k) {
            const int32_t word = at >> 6;
            if (word >= num_words_[k]) return -1;
            const uint64_t found = level_[k][word] & (~uint64_t{0} << (at & 63));
            if (found != 0) {
                at = word * 64 + __builtin_ctzll(found);
                for (; k > 0; --k) at = at * 64 + __builtin_ctzll(level_[k - 1][at]);
                return at;
            }
            at = word + 1;
        }
        return -1;
    }

    Scratch<int32_t> head_, next_;
    Scratch<uint64_t> words_;
    uint64_t* level_[kMaxLevels];
    int32_t num_words_[kMaxLevels];
    int num_levels_ = 0;
};

}  // namespace ralign

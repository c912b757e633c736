#include "bins.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "bucket_queue.h"

namespace ralign {
namespace {

constexpr int32_t kCostKeys = 1 << 14;

// How far costs are shifted down so that any bin's is below kCostKeys. The longest item costs most per token.
int cost_shift(const Items& items, int64_t capacity) {
    const int64_t most = std::min(items.total_cost, (items.cost[0] / items.length[0] + 1) * capacity);
    int shift = 0;
    while (most >> shift >= kCostKeys) ++shift;
    return shift;
}

}  // namespace

Bins best_fit_decreasing(const Items& items, int32_t capacity) {
    Bins bins;
    if (items.size() == 0) return bins;
    bins.bin_of.resize(items.size());
    BucketQueue by_space(capacity + 1, items.size());
    const int32_t shortest = items.length.back();
    for (int64_t i = 0; i < items.size();) {
        const int32_t length = items.length[i];
        auto [bin, space] = by_space.pop_at_least(length);
        if (bin == BucketQueue::kNone) {
            bin = static_cast<int32_t>(bins.size());
            space = capacity;
            bins.space.push_back(capacity);
        }
        do {  // while it has room for it, the bin stays the fullest for the next item of this length
            bins.bin_of[i++] = bin;
            space -= length;
        } while (space >= length && i < items.size() && items.length[i] == length);
        bins.space[bin] = space;
        if (space >= shortest) by_space.push(bin, space);
    }
    return bins;
}

Bins spread_evenly(const Items& items, int64_t num_bins, int32_t capacity) {
    Bins bins;
    bins.bin_of.resize(items.size());
    bins.space.assign(num_bins, capacity);
    bins.cost.assign(num_bins, 0);
    const int shift = cost_shift(items, capacity);
    auto key = [&](int32_t bin) { return static_cast<int32_t>(bins.cost[bin] >> shift); };
    // A bin without room waits in `full` until the items are short enough for it again.
    BucketQueue by_cost(kCostKeys, num_bins), full(capacity + 1, num_bins);
    for (int64_t b = num_bins - 1; b >= 0; --b) by_cost.push(static_cast<int32_t>(b), 0);
    int32_t roomiest_full = -1;
    for (int64_t i = 0; i < items.size(); ++i) {
        const int32_t length = items.length[i];
        if (roomiest_full >= length) {
            for (int32_t b; (b = full.pop_at_least(length).item) != BucketQueue::kNone;) by_cost.push(b, key(b));
            roomiest_full = length - 1;
        }
        int32_t bin;
        while ((bin = by_cost.pop_at_least(0).item) != BucketQueue::kNone && bins.space[bin] < length) {
            full.push(bin, bins.space[bin]);
            roomiest_full = std::max(roomiest_full, bins.space[bin]);
        }
        if (bin == BucketQueue::kNone) return {};
        bins.bin_of[i] = bin;
        bins.space[bin] -= length;
        bins.cost[bin] += items.cost[i];
        by_cost.push(bin, key(bin));
    }
    return bins;
}

void add_costs(Bins& bins, const Items& items) {
    bins.cost.assign(bins.size(), 0);
    for (int64_t i = 0; i < items.size(); ++i) bins.cost[bins.bin_of[i]] += items.cost[i];
}

void split_to(Bins& bins, const Items& items, int64_t num_bins, int32_t capacity) {
    if (bins.size() == num_bins) return;
    Scratch<int32_t> first(num_bins, -1), next(items.size());  // each bin's items, longest first, as a chain
    for (int64_t i = items.size() - 1; i >= 0; --i)
        next[i] = std::exchange(first[bins.bin_of[i]], static_cast<int32_t>(i));
    using Offer = std::pair<int64_t, int64_t>;  // (cost, -bin): of equal costs the first bin
    Scratch<Offer> offers;
    auto divisible = [&](int64_t b) { return next[first[b]] != -1; };
    for (int64_t b = 0; b < bins.size(); ++b)
        if (divisible(b)) offers.emplace_back(bins.cost[b], -b);
    std::priority_queue<Offer, Scratch<Offer>> queue({}, std::move(offers));
    while (bins.size() < num_bins && !queue.empty()) {
        const int64_t halves[2] = {-queue.top().second, bins.size()};
        queue.pop();
        int32_t rest = first[halves[0]], last[2] = {-1, -1};
        int64_t cost[2] = {0, 0};
        int32_t length[2] = {0, 0};
        while (rest != -1) {  // each to the cheaper half
            const int32_t i = std::exchange(rest, next[rest]);
            const int h = cost[1] < cost[0];
            (last[h] == -1 ? first[halves[h]] : next[last[h]]) = i;
            next[i] = -1;
            last[h] = i;
            bins.bin_of[i] = static_cast<int32_t>(halves[h]);
            cost[h] += items.cost[i];
            length[h] += items.length[i];
        }
        bins.space[halves[0]] = capacity - length[0];
        bins.cost[halves[0]] = cost[0];
        bins.space.push_back(capacity - length[1]);
        bins.cost.push_back(cost[1]);
        for (int h = 0; h < 2; ++h)
            if (divisible(halves[h])) queue.emplace(cost[h], -halves[h]);
    }
    bins.space.resize(num_bins, capacity);
    bins.cost.resize(num_bins, 0);
}

}  // namespace ralign

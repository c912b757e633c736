#include "plan.h"

#include <algorithm>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

namespace ralign {
namespace {

using Bins = std::vector<std::vector<int64_t>>;

void check(const int64_t* lengths, int64_t n, int64_t token_budget, int64_t dp_size, int64_t multiple, Cost cost) {
    auto fail = [](const std::string& message) { throw std::invalid_argument(message); };
    if (token_budget < 1 || token_budget > kMaxTokenBudget)
        fail("token_budget must be from 1 to " + std::to_string(kMaxTokenBudget) + ", got " +
             std::to_string(token_budget));
    if (dp_size < 1 || multiple < 1 || dp_size > n / multiple)
        fail(std::to_string(n) + " samples do not give each of " + std::to_string(dp_size) + " ranks " +
             std::to_string(multiple) + " or more micro-batches");
    if (!(cost.linear >= 0) || !(cost.quadratic >= 0) || cost.linear + cost.quadratic == 0)
        fail("cost must be two numbers >= 0, not both 0, got " + std::to_string(cost.linear) + " and " +
             std::to_string(cost.quadratic));
    for (int64_t i = 0; i < n; ++i) {
        if (lengths[i] < 1) fail("sample " + std::to_string(i) + " has length " + std::to_string(lengths[i]));
        if (lengths[i] > token_budget)
            fail("sample " + std::to_string(i) + " has " + std::to_string(lengths[i]) +
                 " tokens, more than token_budget " + std::to_string(token_budget));
    }
}

// Samples by falling length, equal lengths in their given order: a counting sort.
std::vector<int64_t> by_falling_length(const int64_t* lengths, int64_t n, int64_t max_length) {
    std::vector<int64_t> start(max_length + 2, 0);
    for (int64_t i = 0; i < n; ++i) ++start[max_length - lengths[i] + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    std::vector<int64_t> order(n);
    for (int64_t i = 0; i < n; ++i) order[start[max_length - lengths[i]]++] = i;
    return order;
}

// Bins by free space. Finds the fullest bin that still has room in a few word operations: level 0 has a bit for
// each free space that some bin has, level k + 1 a bit for each word of level k that is not 0.
class FreeSpace {
  public:
    explicit FreeSpace(int64_t capacity) : head_(capacity + 1, -1) {
        for (int64_t size = capacity + 1; levels_.empty() || levels_.back().size() > 1;) {
            size = (size + 63) / 64;
            levels_.emplace_back(size, 0);
        }
    }

    void push(int64_t bin, int64_t space) {
        if (bin >= static_cast<int64_t>(next_.size())) next_.resize(bin + 1);
        next_[bin] = head_[space];
        head_[space] = bin;
        for (auto& level : levels_) {
            level[space >> 6] |= uint64_t{1} << (space & 63);
            space >>= 6;
        }
    }

    // Takes out a bin of the smallest free space >= wanted; -1 if there is none.
    std::pair<int64_t, int64_t> pop_at_least(int64_t wanted) {
        const int64_t space = find(wanted);
        if (space < 0) return {-1, -1};
        const int64_t bin = head_[space];
        head_[space] = next_[bin];
        int64_t at = space;
        for (size_t k = 0; head_[space] < 0 && k < levels_.size(); ++k, at >>= 6) {
            levels_[k][at >> 6] &= ~(uint64_t{1} << (at & 63));
            if (levels_[k][at >> 6] != 0) break;
        }
        return {bin, space};
    }

  private:
    int64_t find(int64_t at) const {
        for (size_t k = 0; k < levels_.size(); ++k) {
            const int64_t word = at >> 6;
            if (word >= static_cast<int64_t>(levels_[k].size())) return -1;
            const uint64_t found = levels_[k][word] & (~uint64_t{0} << (at & 63));
            if (found != 0) {
                at = word * 64 + __builtin_ctzll(found);
                for (; k > 0; --k) at = at * 64 + __builtin_ctzll(levels_[k - 1][at]);
                return at;
            }
            at = word + 1;
        }
        return -1;
    }

    std::vector<int64_t> head_, next_;
    std::vector<std::vector<uint64_t>> levels_;
};

// Piles by load; of equal loads the first.
class Lightest {
  public:
    using Load = std::pair<double, int64_t>;

    explicit Lightest(int64_t size) {
        for (int64_t i = 0; i < size; ++i) queue_.emplace(0.0, i);
    }

    Load pop() {
        const Load load = queue_.top();
        queue_.pop();
        return load;
    }

    void push(double load, int64_t i) { queue_.emplace(load, i); }

  private:
    std::priority_queue<Load, std::vector<Load>, std::greater<Load>> queue_;
};

// The fewest bins that the classic heuristic finds: each sample into the fullest bin that has room.
Bins best_fit_decreasing(const int64_t* lengths, const std::vector<int64_t>& order, int64_t capacity) {
    Bins bins;
    FreeSpace free(capacity);
    for (int64_t i : order) {
        auto [bin, space] = free.pop_at_least(lengths[i]);
        if (bin < 0) {
            bin = static_cast<int64_t>(bins.size());
            space = capacity;
            bins.emplace_back();
        }
        bins[bin].push_back(i);
        free.push(bin, space - lengths[i]);
    }
    return bins;
}

// Each sample, longest first, to the cheapest of `num_bins`: bins of like cost, but the cap may not let it; then
// nothing is returned.
Bins spread_evenly(const int64_t* lengths, const std::vector<double>& sample_cost,
                   const std::vector<int64_t>& order, int64_t num_bins, int64_t capacity) {
    Bins bins(num_bins);
    std::vector<int64_t> space(num_bins, capacity);
    Lightest cheapest(num_bins);
    for (int64_t i : order) {
        const auto [cost, b] = cheapest.pop();
        if (lengths[i] > space[b]) return {};
        bins[b].push_back(i);
        space[b] -= lengths[i];
        cheapest.push(cost + sample_cost[i], b);
    }
    return bins;
}

std::vector<double> bin_costs(const Bins& bins, const std::vector<double>& sample_cost) {
    std::vector<double> costs;
    for (const auto& bin : bins) {
        double sum = 0;
        for (int64_t i : bin) sum += sample_cost[i];
        costs.push_back(sum);
    }
    return costs;
}

// Splits the costliest bin that has two samples or more, into halves of like cost, until there are `target` bins.
void split_to(Bins& bins, const std::vector<double>& sample_cost, int64_t target) {
    std::vector<double> costs = bin_costs(bins, sample_cost);
    std::priority_queue<std::pair<double, int64_t>> queue;  // (cost, -bin): of equal costs the first bin
    auto offer = [&](int64_t b) {
        if (bins[b].size() > 1) queue.emplace(costs[b], -b);
    };
    for (int64_t b = 0; b < static_cast<int64_t>(bins.size()); ++b) offer(b);
    while (static_cast<int64_t>(bins.size()) < target) {
        const int64_t b = -queue.top().second;
        queue.pop();
        std::vector<int64_t> whole = std::move(bins[b]), halves[2];
        double half_cost[2] = {0, 0};
        for (int64_t i : whole) {  // by falling length, each to the lighter half
            const int h = half_cost[1] < half_cost[0];
            halves[h].push_back(i);
            half_cost[h] += sample_cost[i];
        }
        bins[b] = std::move(halves[0]);
        costs[b] = half_cost[0];
        bins.push_back(std::move(halves[1]));
        costs.push_back(half_cost[1]);
        offer(b);
        offer(static_cast<int64_t>(bins.size()) - 1);
    }
}

// Bins to ranks, costliest first, each to the lightest rank that has fewer than `per_rank`.
std::vector<std::vector<int64_t>> assign(const std::vector<double>& costs, int64_t dp_size) {
    const int64_t num_bins = static_cast<int64_t>(costs.size()), per_rank = num_bins / dp_size;
    std::vector<int64_t> order(num_bins);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return costs[a] > costs[b]; });
    Lightest lightest(dp_size);
    std::vector<std::vector<int64_t>> ranks(dp_size);
    for (int64_t b : order) {
        const auto [load, r] = lightest.pop();
        ranks[r].push_back(b);
        if (static_cast<int64_t>(ranks[r].size()) < per_rank) lightest.push(load + costs[b], r);
    }
    return ranks;
}

}  // namespace

Plan plan(const int64_t* lengths, int64_t n, int64_t token_budget, int64_t dp_size, int64_t multiple, Cost cost) {
    check(lengths, n, token_budget, dp_size, multiple, cost);
    // More room than all samples together fill is the same as that much room.
    int64_t capacity = 0, max_length = 0;
    for (int64_t i = 0; i < n; ++i) {
        capacity = std::min(token_budget, capacity + lengths[i]);
        max_length = std::max(max_length, lengths[i]);
    }
    const std::vector<int64_t> order = by_falling_length(lengths, n, max_length);
    Bins tight = best_fit_decreasing(lengths, order, capacity);

    const int64_t unit = dp_size * multiple, needed = static_cast<int64_t>(tight.size());
    const int64_t target = (needed + unit - 1) / unit * unit;
    if (target > n)
        throw std::invalid_argument(std::to_string(n) + " samples need " + std::to_string(needed) +
                                    " micro-batches, and the next multiple of " + std::to_string(unit) + " is " +
                                    std::to_string(target) + ": raise token_budget " + std::to_string(token_budget) +
                                    " or give a number of samples that the ranks divide");
    std::vector<double> sample_cost(n);
    for (int64_t i = 0; i < n; ++i) {
        const double length = static_cast<double>(lengths[i]);
        sample_cost[i] = length * (cost.linear + cost.quadratic * length);
    }
    Bins bins = spread_evenly(lengths, sample_cost, order, target, capacity);
    if (bins.empty()) {
        split_to(tight, sample_cost, target);
        bins = std::move(tight);
    }

    Plan out;
    out.indices.reserve(n);
    out.offsets.push_back(0);
    for (const auto& rank : assign(bin_costs(bins, sample_cost), dp_size)) {
        for (int64_t b : rank) {
            std::sort(bins[b].begin(), bins[b].end());
            out.indices.insert(out.indices.end(), bins[b].begin(), bins[b].end());
            out.offsets.push_back(static_cast<int64_t>(out.indices.size()));
        }
    }
    return out;
}

}  // namespace ralign

#include "plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "bins.h"
#include "ranks.h"

namespace ralign {
namespace {

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

void check_range(const char* name, int64_t value, int64_t most) {
    if (value < 1 || value > most)
        fail(std::string(name) + " must be from 1 to " + std::to_string(most) + ", got " + std::to_string(value));
}

// Returns the tokens that fit into a micro-batch before padding.
int64_t check(const int64_t* lengths, int64_t n, const PlanOptions& options) {
    check_range("number of samples", n, std::numeric_limits<int32_t>::max());
    check_range("token_budget", options.token_budget, kMaxTokenBudget);
    check_range("pad_multiple", options.pad_multiple, options.token_budget);
    check_range("dp_size", options.dp_size, kMaxBinUnit);
    check_range("multiple", options.multiple, kMaxBinUnit / options.dp_size);
    const double linear = options.cost.linear, quadratic = options.cost.quadratic;
    if (!(linear >= 0) || !(quadratic >= 0) || linear + quadratic == 0 || !std::isfinite(linear + quadratic))
        fail("cost must be two finite numbers >= 0, not both 0, got " + std::to_string(linear) + " and " +
             std::to_string(quadratic));
    const int64_t capacity = options.token_budget / options.pad_multiple * options.pad_multiple;
    for (int64_t i = 0; i < n; ++i) {
        if (lengths[i] >= 1 && lengths[i] <= capacity) continue;
        const std::string sample = "sample " + std::to_string(i) + " has ", length = std::to_string(lengths[i]);
        if (lengths[i] < 1) fail(sample + "length " + length);
        std::string limit = std::to_string(options.token_budget);
        if (capacity < options.token_budget)
            limit += " leaves room for when padded to a multiple of " + std::to_string(options.pad_multiple);
        fail(sample + length + " tokens, more than token_budget " + limit);
    }
    return capacity;
}

// A counting sort.
Items sort_by_length(const int64_t* lengths, int64_t n) {
    const int64_t longest = *std::max_element(lengths, lengths + n);
    Scratch<int32_t> start(longest + 2, 0);
    for (int64_t i = 0; i < n; ++i) ++start[longest - lengths[i] + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    Items items;
    items.sample.resize(n);
    items.length.resize(n);
    items.cost.resize(n);
    for (int64_t i = 0; i < n; ++i) {
        const int32_t k = start[longest - lengths[i]]++;
        items.sample[k] = static_cast<int32_t>(i);
        items.length[k] = static_cast<int32_t>(lengths[i]);
    }
    return items;
}

// Costs in whole numbers, scaled by a power of two so that all together stay below 2^47.
void set_costs(Items& items, Cost cost) {
    auto cost_of = [&](double length) { return length * (cost.linear + cost.quadratic * length); };
    double total = 0;
    for (int32_t length : items.length) total += cost_of(length);
    constexpr double kLeast = 1e-250, kMost = 1e250;
    if (!(total >= kLeast && total <= kMost))
        fail("cost gives the samples a cost of " + std::to_string(total) + " in all, out of range");
    const double scale = std::ldexp(1.0, 46 - std::ilogb(total));
    for (int64_t k = 0; k < items.size(); ++k) {
        items.cost[k] = static_cast<int64_t>(cost_of(items.length[k]) * scale);
        items.total_cost += items.cost[k];
    }
}

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Exactly `num_bins`, alike if the cap lets them, else from `tight`.
Bins even_bins(const Items& items, Bins tight, int64_t num_bins, int32_t capacity) {
    Bins even = spread_evenly(items, num_bins, capacity);
    if (even.size() > 0) return even;
    add_costs(tight, items);
    split_to(tight, items, num_bins, capacity);
    return tight;
}

Piles plan_samples(const Items& items, int32_t capacity, const PlanOptions& options, Bins& bins) {
    bins = best_fit_decreasing(items, capacity);
    const int64_t num_bins = round_up(bins.size(), options.dp_size * options.multiple);
    Piles ranks(options.dp_size);
    if (!options.balance) {
        for (int64_t b = 0; b < num_bins; ++b) ranks[b % options.dp_size].push_back(static_cast<int32_t>(b));
        return ranks;
    }
    bins = even_bins(items, std::move(bins), num_bins, capacity);
    ranks = deal(bins.cost, options.dp_size);
    even_out(ranks, bins.cost, false);
    if (options.dp_size > 1) even_out_samples(ranks, bins, items);
    return ranks;
}

// Groups numbered from 0 by first appearance among the items; returns each item's.
Scratch<int32_t> number_groups(const Items& items, const int64_t* groups, Scratch<int64_t>& group_cost) {
    Scratch<int32_t> order(items.size()), group_of(items.size());
    std::iota(order.begin(), order.end(), 0);
    auto group = [&](int32_t k) { return groups[items.sample[k]]; };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return group(a) < group(b); });
    for (size_t j = 0; j < order.size(); ++j) {
        if (j == 0 || group(order[j]) != group(order[j - 1])) group_cost.push_back(0);
        group_of[order[j]] = static_cast<int32_t>(group_cost.size()) - 1;
        group_cost.back() += items.cost[order[j]];
    }
    return group_of;
}

// The items of each rank, whole groups together.
Scratch<Items> share_groups(const Items& items, const PlanOptions& options) {
    Scratch<int64_t> group_cost;
    const Scratch<int32_t> group_of = number_groups(items, options.groups, group_cost);
    Piles piles = pile_up(group_cost, options.dp_size);
    if (options.balance) even_out(piles, group_cost, true);
    Scratch<int32_t> rank_of(group_cost.size());
    for (size_t r = 0; r < piles.size(); ++r)
        for (int32_t g : piles[r]) rank_of[g] = static_cast<int32_t>(r);
    Scratch<Items> parts(options.dp_size);
    for (int64_t k = 0; k < items.size(); ++k) {
        Items& part = parts[rank_of[group_of[k]]];
        part.sample.push_back(static_cast<int32_t>(k));  // a position among all items
        part.length.push_back(items.length[k]);
        part.cost.push_back(items.cost[k]);
        part.total_cost += items.cost[k];
    }
    return parts;
}

Piles plan_groups(const Items& items, int32_t capacity, const PlanOptions& options, Bins& bins) {
    const Scratch<Items> parts = share_groups(items, options);
    Scratch<Bins> packed;
    int64_t per_rank = 1;
    for (const Items& part : parts) {
        packed.push_back(best_fit_decreasing(part, capacity));
        per_rank = std::max(per_rank, packed.back().size());
    }
    per_rank = round_up(per_rank, options.multiple);
    bins.bin_of.resize(items.size());
    Piles ranks(options.dp_size);
    for (int64_t r = 0; r < options.dp_size; ++r) {
        if (options.balance && parts[r].size() > 0)
            packed[r] = even_bins(parts[r], std::move(packed[r]), per_rank, capacity);
        packed[r].cost.resize(per_rank, 0);
        for (int64_t k = 0; k < parts[r].size(); ++k)
            bins.bin_of[parts[r].sample[k]] = static_cast<int32_t>(r * per_rank + packed[r].bin_of[k]);
        for (const auto& bin : deal(packed[r].cost, 1)[0])
            ranks[r].push_back(static_cast<int32_t>(r * per_rank + bin));
    }
    bins.space.resize(per_rank * options.dp_size);
    return ranks;
}

Plan write_out(const Items& items, const Bins& bins, const Piles& ranks) {
    int64_t num_bins = 0;
    for (const auto& pile : ranks) num_bins += static_cast<int64_t>(pile.size());
    Scratch<int32_t> place(num_bins), bin_of_sample(items.size());
    int32_t at = 0;
    for (const auto& pile : ranks)
        for (int32_t b : pile) place[b] = at++;
    Plan out;
    out.offsets.assign(num_bins + 1, 0);
    for (int64_t k = 0; k < items.size(); ++k) {
        const int32_t bin = place[bins.bin_of[k]];
        bin_of_sample[items.sample[k]] = bin;
        ++out.offsets[bin + 1];
    }
    std::partial_sum(out.offsets.begin(), out.offsets.end(), out.offsets.begin());
    Scratch<int64_t> next(out.offsets.begin(), out.offsets.end() - 1);
    out.indices.resize(items.size());
    for (int64_t i = 0; i < items.size(); ++i) out.indices[next[bin_of_sample[i]]++] = i;
    return out;
}

}  // namespace

Plan plan(const int64_t* lengths, int64_t n, const PlanOptions& options) {
    int64_t num_tokens = 0;
    const int64_t most = check(lengths, n, options);
    for (int64_t i = 0; i < n; ++i) num_tokens += lengths[i];
    // More room than all samples fill is the same as that much.
    const int32_t capacity = static_cast<int32_t>(std::min(most, num_tokens));
    Items items = sort_by_length(lengths, n);
    if (options.balance) set_costs(items, options.cost);
    Bins bins;
    const Piles ranks = options.groups ? plan_groups(items, capacity, options, bins)
                                       : plan_samples(items, capacity, options, bins);
    return write_out(items, bins, ranks);
}

}  // namespace ralign

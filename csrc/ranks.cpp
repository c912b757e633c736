#include "ranks.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>

namespace ralign {
namespace {

constexpr int64_t kTolerance = 10000;   // stop when the costliest rank is over the mean by less than its 10000th
constexpr int64_t kPartners = 8;        // cheapest ranks that the costliest tries to exchange with
constexpr int64_t kRoundsPerRank = 32;  // never reached in practice; bounds the time
constexpr int64_t kNearEnough = 32;     // a 32nd of the gap: less gain is no exchange, less left ends the search

Scratch<int32_t> by_falling_cost(const Scratch<int64_t>& cost) {
    Scratch<std::pair<int64_t, int32_t>> keys(cost.size());
    for (size_t i = 0; i < cost.size(); ++i) keys[i] = {-cost[i], static_cast<int32_t>(i)};
    std::sort(keys.begin(), keys.end());
    Scratch<int32_t> order(cost.size());
    for (size_t i = 0; i < cost.size(); ++i) order[i] = keys[i].second;
    return order;
}

struct Exchange {
    int64_t given = -1;  // index into the costly pile; -1: there is no exchange
    int64_t taken = -1;  // index into the cheap pile; its size: nothing
};

// The exchange that brings two piles whose costs differ by `gap` closest, among those that `allowed` allows and that
// one walk down both piles meets: for each thing given the two nearest to what would close the gap.
template <typename Allowed>
Exchange best_exchange(const Scratch<int32_t>& costly, const Scratch<int32_t>& cheap,
                       const Scratch<int64_t>& cost, int64_t gap, Allowed allowed) {
    Exchange best;
    int64_t least_left = gap - gap / kNearEnough, t = 0;
    const int64_t num_cheap = static_cast<int64_t>(cheap.size());
    auto cost_of_taken = [&](int64_t index) { return index < num_cheap ? cost[cheap[index]] : 0; };
    for (int64_t g = 0; g < static_cast<int64_t>(costly.size()) && least_left * kNearEnough > gap; ++g) {
        const int64_t given = cost[costly[g]];
        while (t < num_cheap && cost[cheap[t]] > given - gap / 2) ++t;
        for (int64_t candidate = std::max<int64_t>(t - 1, 0); candidate <= t; ++candidate) {
            const int64_t left = std::abs(gap - 2 * (given - cost_of_taken(candidate)));
            if (left < least_left && allowed(costly[g], candidate < num_cheap ? cheap[candidate] : -1)) {
                least_left = left;
                best = {g, candidate};
            }
        }
    }
    return best;
}

void insert(Scratch<int32_t>& pile, int32_t thing, const Scratch<int64_t>& cost) {
    auto before = [&](int32_t a, int32_t b) { return cost[a] != cost[b] ? cost[a] > cost[b] : a < b; };
    pile.insert(std::upper_bound(pile.begin(), pile.end(), thing, before), thing);
}

// try_exchange(costly rank, cheap rank, gap) -> cost moved, 0 if there is no exchange.
template <typename TryExchange>
void lower_the_costliest(Scratch<int64_t>& load, TryExchange try_exchange) {
    const int64_t num_ranks = static_cast<int64_t>(load.size());
    const int64_t total = std::accumulate(load.begin(), load.end(), int64_t{0});
    const int64_t num_partners = std::min(kPartners, num_ranks - 1);
    Scratch<int64_t> ranks(num_ranks);
    std::iota(ranks.begin(), ranks.end(), 0);
    for (int64_t round = 0; round < kRoundsPerRank * num_ranks; ++round) {
        const int64_t costly = std::max_element(load.begin(), load.end()) - load.begin();
        if (load[costly] - total / num_ranks <= total / num_ranks / kTolerance) return;
        std::partial_sort(ranks.begin(), ranks.begin() + num_partners, ranks.end(), [&](int64_t a, int64_t b) {
            return load[a] != load[b] ? load[a] < load[b] : a < b;
        });
        int64_t moved = 0;
        for (int64_t p = 0; p < num_partners && moved == 0; ++p) {
            const int64_t cheap = ranks[p];
            if (load[cheap] == load[costly]) break;
            moved = try_exchange(costly, cheap, load[costly] - load[cheap]);
            load[costly] -= moved;
            load[cheap] += moved;
        }
        if (moved == 0) return;
    }
}

Scratch<int64_t> loads(const Piles& ranks, const Scratch<int64_t>& cost) {
    Scratch<int64_t> load;
    for (const auto& pile : ranks) {
        int64_t sum = 0;
        for (int32_t thing : pile) sum += cost[thing];
        load.push_back(sum);
    }
    return load;
}

// Makes the best allowed exchange between two piles; apply(given, taken or -1) is told. Returns the cost moved.
template <typename Allowed, typename Apply>
int64_t exchange(Scratch<int32_t>& costly, Scratch<int32_t>& cheap, const Scratch<int64_t>& cost,
                 int64_t gap, Allowed allowed, Apply apply) {
    const Exchange best = best_exchange(costly, cheap, cost, gap, allowed);
    if (best.given < 0) return 0;
    const int32_t given = costly[best.given];
    const bool for_one = best.taken < static_cast<int64_t>(cheap.size());
    const int32_t taken = for_one ? cheap[best.taken] : -1;
    costly.erase(costly.begin() + best.given);
    if (for_one) {
        cheap.erase(cheap.begin() + best.taken);
        insert(costly, taken, cost);
    }
    insert(cheap, given, cost);
    apply(given, taken);
    return cost[given] - (for_one ? cost[taken] : 0);
}

}  // namespace

Piles deal(const Scratch<int64_t>& cost, int64_t num_ranks) {
    const Scratch<int32_t> order = by_falling_cost(cost);
    Piles piles(num_ranks);
    Scratch<std::pair<int64_t, int64_t>> load(num_ranks);  // (cost, rank)
    for (int64_t r = 0; r < num_ranks; ++r) load[r] = {0, r};
    for (size_t at = 0; at < order.size(); at += num_ranks) {
        std::sort(load.begin(), load.end());
        for (int64_t j = 0; j < num_ranks; ++j) {
            piles[load[j].second].push_back(order[at + j]);
            load[j].first += cost[order[at + j]];
        }
    }
    return piles;
}

Piles pile_up(const Scratch<int64_t>& cost, int64_t num_ranks) {
    Piles piles(num_ranks);
    using Load = std::pair<int64_t, int64_t>;  // (cost, rank)
    std::priority_queue<Load, Scratch<Load>, std::greater<Load>> cheapest;
    for (int64_t r = 0; r < num_ranks; ++r) cheapest.emplace(0, r);
    for (int32_t thing : by_falling_cost(cost)) {
        const auto [load, r] = cheapest.top();
        cheapest.pop();
        piles[r].push_back(thing);
        cheapest.emplace(load + cost[thing], r);
    }
    return piles;
}

void even_out(Piles& ranks, const Scratch<int64_t>& cost, bool give_away) {
    Scratch<int64_t> load = loads(ranks, cost);
    lower_the_costliest(load, [&](int64_t costly, int64_t cheap, int64_t gap) {
        auto allowed = [&](int32_t, int32_t taken) { return taken >= 0 || give_away; };
        return exchange(ranks[costly], ranks[cheap], cost, gap, allowed, [](int32_t, int32_t) {});
    });
}

void even_out_samples(Piles& ranks, Bins& bins, const Items& items) {
    Scratch<int32_t> rank_of(bins.size());
    for (size_t r = 0; r < ranks.size(); ++r)
        for (int32_t b : ranks[r]) rank_of[b] = static_cast<int32_t>(r);
    Piles samples(ranks.size());
    for (auto& pile : samples) pile.reserve(items.size() / ranks.size() * 5 / 4 + 1);
    for (int64_t i = 0; i < items.size(); ++i) samples[rank_of[bins.bin_of[i]]].push_back(static_cast<int32_t>(i));

    Scratch<int64_t> load = loads(ranks, bins.cost);
    lower_the_costliest(load, [&](int64_t costly, int64_t cheap, int64_t gap) {
        const int32_t roomiest = *std::max_element(ranks[cheap].begin(), ranks[cheap].end(), [&](int32_t a, int32_t b) {
            return bins.space[a] != bins.space[b] ? bins.space[a] < bins.space[b] : a > b;
        });
        auto target = [&](int32_t taken) { return taken >= 0 ? bins.bin_of[taken] : roomiest; };
        auto growth = [&](int32_t given, int32_t taken) {
            return items.length[given] - (taken >= 0 ? items.length[taken] : 0);
        };
        auto allowed = [&](int32_t given, int32_t taken) {
            return growth(given, taken) <= bins.space[target(taken)];
        };
        auto apply = [&](int32_t given, int32_t taken) {
            const int32_t from = bins.bin_of[given], to = target(taken);
            const int64_t cost = items.cost[given] - (taken >= 0 ? items.cost[taken] : 0);
            bins.space[from] += growth(given, taken);
            bins.space[to] -= growth(given, taken);
            bins.cost[from] -= cost;
            bins.cost[to] += cost;
            bins.bin_of[given] = to;
            if (taken >= 0) bins.bin_of[taken] = from;
        };
        return exchange(samples[costly], samples[cheap], items.cost, gap, allowed, apply);
    });
    for (auto& pile : ranks)
        std::sort(pile.begin(), pile.end(), [&](int32_t a, int32_t b) {
            return bins.cost[a] != bins.cost[b] ? bins.cost[a] > bins.cost[b] : a < b;
        });
}

}  // namespace ralign

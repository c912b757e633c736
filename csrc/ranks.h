// Bins to data-parallel ranks that cost alike.
#pragma once

#include <cstdint>

#include "bins.h"

namespace ralign {

using Piles = Scratch<Scratch<int32_t>>;  // of each rank: items by falling cost, equal costs by number

// Bins by falling cost, dealt in rounds of one bin a rank, the costliest of a round to the cheapest rank: bins of
// one round, which the ranks work on side by side, cost alike. The number of bins is a multiple of num_ranks.
Piles deal(const Scratch<int64_t>& cost, int64_t num_ranks);

// Each pile of things, costliest first, to the cheapest rank: for things that come in any number to a rank.
Piles pile_up(const Scratch<int64_t>& cost, int64_t num_ranks);

// Exchanges things between ranks, one for one (or, with `give_away`, one for none), until the costliest rank is
// within 1/10000 of the mean or no exchange makes it cheaper.
void even_out(Piles& ranks, const Scratch<int64_t>& cost, bool give_away);

// The same with the samples in the ranks' bins, under the cap on tokens. Each rank's bins come out by falling cost.
void even_out_samples(Piles& ranks, Bins& bins, const Items& items);

}  // namespace ralign

// The packing planner: ragged samples to micro-batches under a token budget, balanced over data-parallel ranks.
#pragma once

#include <cstdint>
#include <vector>

namespace ralign {

// A micro-batch costs the sum over its samples of linear * length + quadratic * length^2.
struct Cost {
    double linear;
    double quadratic;
};

// Rank r's micro-batches are bins r * k to (r + 1) * k - 1, with k = num_bins / dp_size, by falling cost;
// bin b holds samples indices[offsets[b]] to indices[offsets[b + 1] - 1], ascending.
struct Plan {
    std::vector<int64_t> indices;  // [n], every sample once
    std::vector<int64_t> offsets;  // [num_bins + 1]
};

// Budgets above this are refused: the planner keeps a table with an entry for each possible free space.
constexpr int64_t kMaxTokenBudget = int64_t{1} << 26;

// lengths [n], each from 1 to token_budget. The number of bins is the smallest multiple of dp_size * multiple that
// best-fit-decreasing can do with; no bin is empty and none holds more than token_budget tokens. Bins cost alike if
// the budget leaves room for that, else they are as best-fit-decreasing leaves them. The same input gives the same
// plan; of equal lengths the earlier sample is placed first. Throws std::invalid_argument, naming what does not fit.
// O(n log n) time, O(n + token_budget) memory.
Plan plan(const int64_t* lengths, int64_t n, int64_t token_budget, int64_t dp_size, int64_t multiple, Cost cost);

}  // namespace ralign

// The inverse of materialise: per-token results back to samples.
#pragma once

#include <cstdint>
#include <vector>

namespace ralign {

// One sample's response tokens among its micro-batch's results, and where they go.
struct Rows {
    const float* from;
    int64_t count;
    int64_t to;  // index into `out`
};

void unpack(const std::vector<Rows>& samples, float* out);

}  // namespace ralign

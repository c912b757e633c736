// The flat tensors of packed micro-batches, written into buffers of the caller's.
#pragma once

#include <cstdint>
#include <vector>

namespace ralign {

constexpr int64_t kIgnore = -100;  // the target of a position that predicts no response token

// One sample's tokens, borrowed. The prompt is not empty: its last token predicts the first of the response.
struct Sequence {
    const int64_t* prompt_ids;
    const int64_t* response_ids;
    int64_t num_prompt;
    int64_t num_response;
};

// Where things stand in the flat tensors of M micro-batches of S samples.
struct Layout {
    std::vector<int64_t> token_offsets;  // [M + 1] into the T tokens
    std::vector<int64_t> cu_offsets;     // [M + 1] into all cu_seqlens, end to end
    std::vector<int64_t> row_starts;     // [S] in its micro-batch: the position that predicts its first response token
    std::vector<int64_t> row_offsets;    // [S + 1] into the R response tokens
    std::vector<int64_t> max_seqlens;    // [M]
};

// Values that go to the T tokens: one for each response token of a sample, or the same for all of them. They stand
// where the token is predicted; `elsewhere` stands at all other positions.
template <typename T>
struct Column {
    std::vector<const T*> of_sample;  // [S]
    bool same;                        // each points to a single value
    T elsewhere;
    T* out;  // [T]
};

struct Flat {
    int64_t* input_ids;      // [T]
    int64_t* targets;        // [T] the response token that is predicted here, or kIgnore
    int64_t* position_ids;   // [T] from 0 in each sequence
    bool* loss_mask;         // [T] targets != kIgnore
    int32_t* cu_seqlens;     // [cu_offsets.back()] starts of a micro-batch's sequences and its number of tokens
    int64_t* response_rows;  // [R] the positions, in their micro-batch, that predict response tokens
    std::vector<Column<float>> floats;
    std::vector<Column<int64_t>> ints;
};

// sizes[m] of the sequences, in their order, are micro-batch m. Its tokens are filled up to a multiple of
// pad_multiple, and to one multiple if it has no sample; the filling is a sequence of its own.
Layout lay_out(const std::vector<Sequence>& sequences, const int64_t* sizes, int64_t num_batches,
               int64_t pad_multiple);

void materialise(const std::vector<Sequence>& sequences, const int64_t* sizes, const Layout& layout, const Flat& flat);

}  // namespace ralign

#include "materialise.h"

#include <algorithm>

#include "stream.h"

namespace ralign {
namespace {

// The samples first to last - 1 of a micro-batch, and the filling behind them.
struct Batch {
    int64_t first, last, filling;
};

// One tensor of a micro-batch, sample after sample: write(stream, sample, sequence), then the filling.
template <typename T, typename Write>
void write_samples(Stream<T>& stream, const std::vector<Sequence>& sequences, const Batch& batch, T filling, Write write) {
    for (int64_t s = batch.first; s < batch.last; ++s) write(s, sequences[s]);
    stream.fill(filling, batch.filling);
}

// A sample's tokens are those that predict prompt tokens, those that predict the response, and its last.
template <typename T>
void write_column(Stream<T>& stream, const std::vector<Sequence>& sequences, const Batch& batch, const Column<T>& column) {
    write_samples(stream, sequences, batch, column.elsewhere, [&](int64_t s, const Sequence& sequence) {
        stream.fill(column.elsewhere, sequence.num_prompt - 1);
        if (column.same)
            stream.fill(*column.of_sample[s], sequence.num_response);
        else
            stream.copy(column.of_sample[s], sequence.num_response);
        stream.fill(column.elsewhere, 1);
    });
}

void write_cu_seqlens(int32_t* out, const std::vector<Sequence>& sequences, const Batch& batch) {
    int64_t at = 0;
    for (int64_t s = batch.first; s < batch.last; ++s) {
        *out++ = static_cast<int32_t>(at);
        at += sequences[s].num_prompt + sequences[s].num_response;
    }
    if (batch.filling > 0) *out++ = static_cast<int32_t>(at);
    *out = static_cast<int32_t>(at + batch.filling);
}

// All tensors side by side, each from front to back.
class Writer {
  public:
    explicit Writer(const Flat& flat)
        : flat_(flat),
          input_ids_(flat.input_ids),
          targets_(flat.targets),
          position_ids_(flat.position_ids),
          response_rows_(flat.response_rows),
          loss_mask_(flat.loss_mask) {
        for (const auto& column : flat.floats) floats_.emplace_back(column.out);
        for (const auto& column : flat.ints) ints_.emplace_back(column.out);
    }

    // One tensor at a time: the processor merges few streams of writes at once. The samples stay in its cache.
    void write(const std::vector<Sequence>& sequences, const Layout& layout, const Batch& batch) {
        write_samples(input_ids_, sequences, batch, int64_t{0}, [&](int64_t s, const Sequence& sequence) {
            if (s + 1 < batch.last) {  // the processor cannot guess where the next sample lies
                __builtin_prefetch(sequences[s + 1].prompt_ids);
                __builtin_prefetch(sequences[s + 1].response_ids);
            }
            input_ids_.copy(sequence.prompt_ids, sequence.num_prompt);
            input_ids_.copy(sequence.response_ids, sequence.num_response);
        });
        write_samples(targets_, sequences, batch, kIgnore, [&](int64_t, const Sequence& sequence) {
            targets_.fill(kIgnore, sequence.num_prompt - 1);
            targets_.copy(sequence.response_ids, sequence.num_response);
            targets_.fill(kIgnore, 1);
        });
        for (int64_t s = batch.first; s < batch.last; ++s)
            position_ids_.count_up(0, sequences[s].num_prompt + sequences[s].num_response);
        position_ids_.count_up(0, batch.filling);
        for (int64_t s = batch.first; s < batch.last; ++s)
            response_rows_.count_up(layout.row_starts[s], sequences[s].num_response);
        write_samples(loss_mask_, sequences, batch, false, [&](int64_t, const Sequence& sequence) {
            loss_mask_.fill(false, sequence.num_prompt - 1);
            loss_mask_.fill(true, sequence.num_response);
            loss_mask_.fill(false, 1);
        });
        for (size_t c = 0; c < floats_.size(); ++c) write_column(floats_[c], sequences, batch, flat_.floats[c]);
        for (size_t c = 0; c < ints_.size(); ++c) write_column(ints_[c], sequences, batch, flat_.ints[c]);
    }

    void finish() {
        for (Stream<int64_t>* stream : {&input_ids_, &targets_, &position_ids_, &response_rows_}) stream->finish();
        loss_mask_.finish();
        for (auto& stream : floats_) stream.finish();
        for (auto& stream : ints_) stream.finish();
    }

  private:
    const Flat& flat_;
    Stream<int64_t> input_ids_, targets_, position_ids_, response_rows_;
    Stream<bool> loss_mask_;
    std::vector<Stream<float>> floats_;
    std::vector<Stream<int64_t>> ints_;
};

}  // namespace

Layout lay_out(const std::vector<Sequence>& sequences, const int64_t* sizes, int64_t num_batches,
               int64_t pad_multiple) {
    Layout layout{{0}, {0}, {}, {0}, {}};
    int64_t sample = 0;
    for (int64_t m = 0; m < num_batches; ++m) {
        int64_t num_tokens = 0, max_seqlen = 0;
        for (const int64_t end = sample + sizes[m]; sample < end; ++sample) {
            const Sequence& sequence = sequences[sample];
            const int64_t length = sequence.num_prompt + sequence.num_response;
            layout.row_starts.push_back(num_tokens + sequence.num_prompt - 1);
            layout.row_offsets.push_back(layout.row_offsets.back() + sequence.num_response);
            num_tokens += length;
            max_seqlen = std::max(max_seqlen, length);
        }
        const int64_t padded = std::max<int64_t>((num_tokens + pad_multiple - 1) / pad_multiple, 1) * pad_multiple;
        const int64_t filling = padded - num_tokens;
        layout.token_offsets.push_back(layout.token_offsets.back() + padded);
        layout.cu_offsets.push_back(layout.cu_offsets.back() + sizes[m] + 1 + (filling > 0));
        layout.max_seqlens.push_back(std::max(max_seqlen, filling));
    }
    return layout;
}

void materialise(const std::vector<Sequence>& sequences, const int64_t* sizes, const Layout& layout, const Flat& flat) {
    Writer writer(flat);
    int64_t sample = 0;
    for (size_t m = 0; m + 1 < layout.token_offsets.size(); ++m) {
        Batch batch{sample, sample + sizes[m], layout.token_offsets[m + 1] - layout.token_offsets[m]};
        for (; sample < batch.last; ++sample)
            batch.filling -= sequences[sample].num_prompt + sequences[sample].num_response;
        write_cu_seqlens(flat.cu_seqlens + layout.cu_offsets[m], sequences, batch);
        writer.write(sequences, layout, batch);
    }
    writer.finish();
}

}  // namespace ralign

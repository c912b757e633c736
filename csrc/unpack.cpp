#include "unpack.h"

#include <algorithm>

namespace ralign {

void unpack(const std::vector<Rows>& samples, float* out) {
    for (const Rows& rows : samples) std::copy_n(rows.from, rows.count, out + rows.to);
}

}  // namespace ralign

// Memory that a thread keeps from call to call: fresh pages cost more than the planning itself.
#pragma once

#include <cstddef>
#include <memory_resource>
#include <vector>

namespace ralign {

template <typename T>
struct Pooled {
    using value_type = T;
    Pooled() = default;
    template <typename U>
    Pooled(const Pooled<U>&) {}

    T* allocate(size_t n) { return static_cast<T*>(pool().allocate(n * sizeof(T), alignof(T))); }
    void deallocate(T* p, size_t n) { pool().deallocate(p, n * sizeof(T), alignof(T)); }
    bool operator==(const Pooled&) const { return true; }
    bool operator!=(const Pooled&) const { return false; }

  private:
    static std::pmr::unsynchronized_pool_resource& pool() {
        static thread_local std::pmr::unsynchronized_pool_resource of_this_thread;
        return of_this_thread;
    }
};

// For what lives within one call: it must be freed by the thread that made it.
template <typename T>
using Scratch = std::vector<T, Pooled<T>>;

}  // namespace ralign

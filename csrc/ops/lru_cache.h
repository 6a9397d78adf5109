// A small cache that forgets what was used least recently.
#pragma once

#include <list>
#include <mutex>
#include <utility>

namespace synq {

// Values are cheap to copy (shared pointers, tensors). Look-up is linear: capacities are small.
template <typename Key, typename Value>
class LruCache {
 public:
  explicit LruCache(size_t capacity) : capacity_(capacity) {}

  // Returns the value of `key`, made by `make()` when it is not there; two threads may make it at the same time.
  template <typename Make>
  Value get(const Key& key, const Make& make) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
        if (entry->first == key) {
          entries_.splice(entries_.begin(), entries_, entry);
          return entry->second;
        }
      }
    }
    Value value = make();
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_.emplace_front(key, value);
    if (entries_.size() > capacity_) entries_.pop_back();
    return value;
  }

 private:
  const size_t capacity_;
  std::mutex mutex_;
  std::list<std::pair<Key, Value>> entries_;
};

}  // namespace synq

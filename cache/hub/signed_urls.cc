#include "cache/hub/signed_urls.h"

#include <algorithm>
#include <ctime>
#include <utility>

#include "cache/http/http_fields.h"

namespace weightfs {
namespace {

using std::chrono::seconds;

constexpr seconds kLongestUse = std::chrono::minutes(50);
constexpr seconds kMargin{60};                // before a signature runs out
constexpr seconds kFailedRefresh{30};         // until a refresh is tried again
constexpr uint64_t kMaxSeconds = 1ULL << 40;  // far past any real time stamp

// "20260131T235959Z".
std::optional<Clock::WallTime> ParseBasicTime(const std::string& text) {
  std::tm fields{};
  const char* end = strptime(text.c_str(), "%Y%m%dT%H%M%SZ", &fields);
  if (end == nullptr || *end != '\0') return std::nullopt;
  return std::chrono::system_clock::from_time_t(timegm(&fields));
}

std::optional<uint64_t> Number(const Url& url, const char* name) {
  const auto text = url.QueryValue(name);
  const auto value = text ? ParseDecimal(*text) : std::nullopt;
  if (!value || *value > kMaxSeconds) return std::nullopt;
  return value;
}

}  // namespace

std::optional<seconds> SignatureLife(const Url& url, Clock::WallTime now) {
  std::optional<seconds> life;
  const auto ends = [&](Clock::WallTime when) {
    const auto left = std::chrono::floor<seconds>(when - now);
    life = life ? std::min(*life, left) : left;
  };
  for (const std::string prefix : {"X-Amz-", "X-Goog-"}) {
    const auto date = url.QueryValue(prefix + "Date");
    const auto lasts = Number(url, (prefix + "Expires").c_str());
    const auto begins = date ? ParseBasicTime(*date) : std::nullopt;
    if (begins && lasts) {
      // A longer life is cut to kLongestUse anyway.
      ends(*begins + seconds(std::min<uint64_t>(*lasts, 1U << 30)));
    }
  }
  if (const auto epoch = Number(url, "Expires")) {
    const auto now_seconds =
        std::chrono::floor<seconds>(now.time_since_epoch());
    const seconds left = seconds(*epoch) - now_seconds;
    life = life ? std::min(*life, left) : left;
  }
  return life;
}

std::optional<SignedUrls::Lead> SignedUrls::Take(const std::string& path,
                                                 Waiter waiter) {
  Entry& entry = entries_[path];
  const Clock::Time now = clock_.Now();
  if (entry.url && now < entry.expires) {
    if (now < entry.refresh || entry.asking) {
      return Lead{
          Lead::Kind::kUse, entry.url, entry.generation, entry.reach, {}};
    }
    entry.asking = true;
    return Lead{};
  }
  if (entry.direct && now < entry.expires) {
    return Lead{Lead::Kind::kDirect, {}, 0, {}, {}};
  }
  if (entry.asking) {
    entry.waiters.push_back(std::move(waiter));
    return std::nullopt;
  }
  entry.asking = true;
  return Lead{};
}

uint64_t SignedUrls::Put(const std::string& path, const Url& url,
                         Clock::WallTime now, HttpReach reach) {
  Entry& entry = entries_[path];
  seconds use = kLongestUse;
  if (const auto life = SignatureLife(url, now)) {
    // A short life keeps a share of it: none left would mean to ask the Hub for
    // every range.
    const seconds left = std::max(*life, seconds(0));
    use = std::min(use, left - std::min(kMargin, left / 5));
  }
  const Clock::Time taken = clock_.Now();
  if (!entry.url || entry.url->ToString() != url.ToString()) {
    entry.generation = next_generation_++;
  }
  entry.url = url;
  entry.reach = reach;
  entry.direct = false;
  entry.expires = taken + use;
  entry.refresh = taken + use * 4 / 5;
  entry.asking = false;
  const uint64_t generation = entry.generation;
  Wake(path, Lead{Lead::Kind::kUse, url, generation, reach, {}});
  return generation;
}

void SignedUrls::PutDirect(const std::string& path) {
  Entry& entry = entries_[path];
  entry.url.reset();
  entry.direct = true;
  entry.expires = clock_.Now() + kLongestUse;
  entry.asking = false;
  Wake(path, Lead{Lead::Kind::kDirect, {}, 0, {}, {}});
}

void SignedUrls::Fail(const std::string& path, const Error& error) {
  Entry& entry = entries_[path];
  entry.asking = false;
  // A URL that still works outlives a refresh that failed.
  entry.refresh = clock_.Now() + kFailedRefresh;
  if (error.code() == Code::kCancelled && !entry.waiters.empty()) {
    const Waiter next = std::move(entry.waiters.front());
    entry.waiters.erase(entry.waiters.begin());
    entry.asking = true;
    next(Lead{});
    return;
  }
  Wake(path, Lead{Lead::Kind::kFailed, {}, 0, {}, error});
}

void SignedUrls::Drop(const std::string& path, uint64_t generation) {
  const auto it = entries_.find(path);
  if (it == entries_.end() || it->second.generation != generation) return;
  it->second.url.reset();
}

void SignedUrls::Wake(const std::string& path, const Lead& lead) {
  std::vector<Waiter> waiters;
  waiters.swap(entries_[path].waiters);
  for (const Waiter& waiter : waiters) waiter(lead);
}

}  // namespace weightfs

#include "cache/pace.h"

#include <algorithm>
#include <chrono>

namespace weightfs {
namespace {

constexpr double kWeight = 1.0 / 8;  // of the newest, in an average
// What a loopback server brings in no time is not faster than this can tell.
constexpr double kLeastMeasured = 0.001;  // seconds

double Seconds(Pace::Duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

void Pace::OnEnd(Duration waited, uint64_t bytes, Duration took) {
  wait_ += kWeight * (Seconds(waited) - wait_);
  if (bytes < kLeastBytes) return;
  const double rate =
      static_cast<double>(bytes) / std::max(Seconds(took), kLeastMeasured);
  rate_ = rate_ == 0 ? rate : rate_ + kWeight * (rate - rate_);
}

uint64_t Pace::EfficientBytes(uint64_t least, uint64_t most) const {
  const double wanted = std::min(3 * wait_ * rate_, 1e15);
  return std::clamp(static_cast<uint64_t>(wanted), least, most);
}

bool Pace::IsSlow(Duration ran, uint64_t received, uint64_t length) const {
  if (rate_ == 0 || received >= length) return false;
  const double left = static_cast<double>(length - received);
  const double usual = wait_ + left / rate_;
  // What brought nothing yet is thought to be half way.
  const double expected =
      received == 0 ? Seconds(ran)
                    : Seconds(ran) * left / static_cast<double>(received);
  return expected > std::max(kLeastSeconds, kTimesUsual * usual);
}

}  // namespace weightfs

#include "tools/watchdog.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <utility>

#include "formats/base/worker_pool.h"

namespace weightfs {
namespace {

using Steady = std::chrono::steady_clock;

// Added to the eventfd; Arm adds 1.
constexpr uint64_t kDone = uint64_t{1} << 32;

void AddTo(const UniqueFd& event, uint64_t count) {
  const int before = errno;
  // Cannot fail but for a counter at its limit.
  if (::write(event.get(), &count, sizeof(count)) < 0) errno = before;
}

constexpr std::array kSignals = {SIGTERM, SIGINT, SIGHUP};

// A handler can reach globals only.
// NOLINTBEGIN(cppcoreguidelines-avoid-non-const-global-variables)
std::atomic<ShutdownWatchdog*> armed_by_signals{nullptr};
std::array<struct sigaction, kSignals.size()> earlier_actions;
// NOLINTEND(cppcoreguidelines-avoid-non-const-global-variables)

void ArmAndPassOn(int signal) {
  if (ShutdownWatchdog* watchdog = armed_by_signals.load()) watchdog->Arm();
  for (size_t i = 0; i < kSignals.size(); ++i) {
    const auto earlier = earlier_actions[i].sa_handler;
    if (kSignals[i] == signal && earlier != SIG_DFL && earlier != SIG_IGN) {
      earlier(signal);
    }
  }
}

}  // namespace

ShutdownWatchdog::ShutdownWatchdog(std::chrono::milliseconds limit,
                                   std::function<void()> give_up)
    : limit_(limit),
      give_up_(std::move(give_up)),
      event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      thread_(StartThread("wfs-watchdog", [this] { Run(); })) {}

ShutdownWatchdog::~ShutdownWatchdog() {
  AddTo(event_, kDone);
  thread_.join();
}

void ShutdownWatchdog::Arm() { AddTo(event_, 1); }

void ShutdownWatchdog::Run() {
  bool armed = false;
  Steady::time_point deadline;
  while (true) {
    int wait_ms = -1;
    if (armed) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(
          deadline - Steady::now());
      if (left.count() <= 0) break;
      wait_ms = static_cast<int>(left.count());
    }
    pollfd entry{event_.get(), POLLIN, 0};
    if (::poll(&entry, 1, wait_ms) < 0 && errno != EINTR) return;
    uint64_t count = 0;
    if (::read(event_.get(), &count, sizeof(count)) < 0) continue;
    if (count >= kDone) return;
    if (!armed) deadline = Steady::now() + limit_;
    armed = true;
  }
  give_up_();
}

ArmOnSignals::ArmOnSignals(ShutdownWatchdog& watchdog) {
  armed_by_signals = &watchdog;
  for (size_t i = 0; i < kSignals.size(); ++i) {
    ::sigaction(kSignals[i], nullptr, &earlier_actions[i]);
    const auto earlier = earlier_actions[i].sa_handler;
    if (earlier == SIG_IGN || earlier == SIG_DFL) continue;
    struct sigaction action = earlier_actions[i];
    action.sa_handler = &ArmAndPassOn;
    ::sigaction(kSignals[i], &action, nullptr);
  }
}

ArmOnSignals::~ArmOnSignals() {
  for (size_t i = 0; i < kSignals.size(); ++i) {
    struct sigaction current {};
    ::sigaction(kSignals[i], nullptr, &current);
    if (current.sa_handler == &ArmAndPassOn) {
      ::sigaction(kSignals[i], &earlier_actions[i], nullptr);
    }
  }
  armed_by_signals = nullptr;
}

}  // namespace weightfs

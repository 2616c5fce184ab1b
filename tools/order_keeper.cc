#include "tools/order_keeper.h"

#include <utility>

#include "formats/base/clock.h"
#include "formats/base/log.h"
#include "formats/base/worker_pool.h"

namespace weightfs {
namespace {

constexpr std::chrono::milliseconds kOrderPatience{1'000};

}  // namespace

OrderKeeper::OrderKeeper(const std::string& cache_folder, const Repo& repo,
                         Vfs& vfs, std::chrono::milliseconds pause)
    : repo_(repo),
      vfs_(vfs),
      pause_(pause),
      store_(cache_folder, kOrderPatience),
      thread_(StartThread("wfs-order", [this] { Run(); })) {}

OrderKeeper::~OrderKeeper() { Finish(); }

void OrderKeeper::Finish() {
  {
    MutexLock lock(mutex_);
    ending_ = true;
    wake_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void OrderKeeper::Run() {
  auto kept =
      store_.LoadOrder(repo_.origin().cache_namespace(), repo_.snapshot());
  if (kept.has_value()) {
    saved_ = *std::move(kept);
    vfs_.LearnOrder(saved_);
  } else if (kept.error().code() != Code::kNotFound) {
    LogDebug("no learned order: {}", kept.error().message());
  }
  while (Wait()) Save();
  Save();
}

bool OrderKeeper::Wait() {
  const auto until = Clock::System().Now() + pause_;
  MutexLock lock(mutex_);
  while (!ending_ && Clock::System().Now() < until) {
    wake_.WaitUntil(mutex_, until);
  }
  return !ending_;
}

void OrderKeeper::Save() {
  const uint64_t touches = vfs_.order_touches();
  if (touches == touches_) return;
  auto order = vfs_.OrderToKeep();
  if (!order.empty() && order != saved_) {
    const auto saved = store_.SaveOrder(repo_.origin().cache_namespace(),
                                        repo_.snapshot(), order);
    if (!saved.has_value()) {
      LogDebug("the learned order is not kept: {}", saved.error().message());
      return;
    }
    saved_ = std::move(order);
  }
  touches_ = touches;
}

}  // namespace weightfs

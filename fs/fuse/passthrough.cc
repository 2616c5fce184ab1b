#include "fs/fuse/passthrough.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "formats/base/log.h"
#include "formats/base/unique_fd.h"
#include "fs/vfs.h"

namespace weightfs {
namespace {

// As <linux/fuse.h> has them since 6.9.
struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
constexpr unsigned long kBackingClose = _IOW(229, 2, uint32_t);

class FuseDevice final : public Passthrough::Device {
 public:
  explicit FuseDevice(int fd) : fd_(fd) {}

  int Open(int fd) override {
    BackingMap map{.fd = fd, .flags = 0, .padding = 0};
    const int id = ::ioctl(fd_, kBackingOpen, &map);
    if (id > 0) return id;
    return id < 0 ? -errno : -EPROTO;
  }
  void Close(int id) override {
    auto number = static_cast<uint32_t>(id);
    // Unmounted, or given up: nothing is registered any more.
    static_cast<void>(::ioctl(fd_, kBackingClose, &number));
  }

 private:
  const int fd_;
};

// Whether such an error would come again, whatever file is tried.
bool IsFinal(int error) {
  return error == EPERM || error == EACCES || error == ELOOP ||
         error == EINVAL || error == ENOTTY || error == EOPNOTSUPP ||
         error == EPROTO;
}

std::string Why(int error) {
  switch (error) {
    case EPERM:
    case EACCES:
      return "it needs root (CAP_SYS_ADMIN)";
    case ELOOP:
      return "the cache's file system is stacked; put --cache-dir on another";
    default:
      return std::string("the kernel refuses: ") +
             std::strerror(error);  // NOLINT(concurrency-mt-unsafe)
  }
}

}  // namespace

std::unique_ptr<Passthrough::Device> Passthrough::KernelDevice(int fuse_fd) {
  return std::make_unique<FuseDevice>(fuse_fd);
}

void Passthrough::Expect() {
  MutexLock lock(mutex_);
  counting_ = true;
}

void Passthrough::On(std::unique_ptr<Device> device) {
  // Any file will do to see whether this process may.
  const UniqueFd probe(::memfd_create("weightfs", MFD_CLOEXEC));
  const int id = probe.valid() ? device->Open(probe.get()) : -errno;
  if (id < 0) return Off(Why(-id));
  device->Close(id);
  MutexLock lock(mutex_);
  device_ = std::move(device);
  totals_.on = true;
  totals_.why.clear();
}

void Passthrough::Off(std::string why) {
  MutexLock lock(mutex_);
  totals_.on = false;
  totals_.why = std::move(why);
  // Nothing was registered yet: nothing needs to be known of nodes.
  counting_ = false;
  nodes_.clear();
}

void Passthrough::CountLookups(std::span<const uint64_t> nodes) {
  MutexLock lock(mutex_);
  if (!counting_) return;
  for (const uint64_t id : nodes) {
    if (!Vfs::IsWholeObject(id)) continue;
    Node& node = nodes_[id];
    ++node.lookups;
    // It has a name again, which keeps it.
    AwaitIdle(id, node);
  }
}

void Passthrough::Forget(uint64_t node, uint64_t count) {
  MutexLock lock(mutex_);
  const auto it = nodes_.find(node);
  if (it == nodes_.end()) return;
  it->second.lookups -= std::min(it->second.lookups, count);
  EraseIfUnused(it);
}

// Handles keep a node from being forgotten; they are looked at all the same.
void Passthrough::EraseIfUnused(Nodes::iterator it) {
  const Node& node = it->second;
  if (node.lookups > 0 || node.handles > 0) return;
  for (const Registered& registered : node.registered) {
    device_->Close(registered.id);
    --totals_.registered;
  }
  nodes_.erase(it);
}

bool Passthrough::Wants(uint64_t node, std::shared_ptr<CacheFile>& in_use) {
  if (!Vfs::IsWholeObject(node)) return false;
  MutexLock lock(mutex_);
  const auto it = nodes_.find(node);
  const bool open = it != nodes_.end() && it->second.handles > 0;
  if (open && !it->second.through) return false;
  if (open) in_use = it->second.in_use;
  return open || totals_.on;
}

std::optional<int> Passthrough::Open(uint64_t node_id, Repo::Sharing sharing) {
  if (!Vfs::IsWholeObject(node_id)) return 0;
  std::string warning;
  const auto id = Decide(node_id, sharing, warning);
  if (!warning.empty()) LogWarning("{}", warning);
  return id;
}

std::optional<int> Passthrough::Decide(uint64_t node_id,
                                       const Repo::Sharing& sharing,
                                       std::string& warning) {
  MutexLock lock(mutex_);
  if (!counting_) return 0;
  Node& node = nodes_[node_id];
  int id = 0;
  if (node.handles > 0) {
    if (node.through && sharing.in_use_is_wrong) return std::nullopt;
    if (node.through) id = node.registered.back().id;
  } else if (sharing.sealed) {
    id = Register(node, *sharing.sealed, warning);
    node.through = id > 0;
    if (id > 0) node.in_use = sharing.sealed->cached;
  } else {
    node.through = false;
  }
  ++node.handles;
  node.idle_at.reset();
  if (id > 0) ++totals_.opens;
  return id;
}

int Passthrough::Register(Node& node, const Repo::Shared& shared,
                          std::string& warning) {
  if (!node.registered.empty() &&
      node.registered.back().inode == shared.inode) {
    return node.registered.back().id;
  }
  if (!totals_.on) return 0;
  // Opened through, a file takes O_DIRECT only if its disk does; cached, each
  // does.
  if (::fcntl(shared.fd.get(), F_SETFL, O_DIRECT) != 0) {
    warning = Refused(EINVAL);
    return 0;
  }
  ::fcntl(shared.fd.get(), F_SETFL, 0);
  const int id = device_->Open(shared.fd.get());
  if (id < 0) {
    warning = Refused(-id);
    return 0;
  }
  node.registered.push_back({id, shared.inode});
  ++totals_.registered;
  return id;
}

std::string Passthrough::Refused(int error) {
  if (!IsFinal(error)) return "";  // no memory, say
  totals_.on = false;
  totals_.why = error == EINVAL ? "the cache's file system knows no O_DIRECT"
                                : Why(error);
  return "passthrough is off: " + totals_.why;
}

void Passthrough::Release(uint64_t node_id) {
  std::shared_ptr<CacheFile> dropped;  // closed without the lock
  MutexLock lock(mutex_);
  const auto it = nodes_.find(node_id);
  if (it == nodes_.end() || it->second.handles == 0) return;
  Node& node = it->second;
  if (--node.handles > 0) return;
  dropped = std::move(node.in_use);
  node.in_use = nullptr;
  AwaitIdle(node_id, node);
  EraseIfUnused(it);
}

void Passthrough::AwaitIdle(uint64_t node_id, Node& node) {
  if (node.handles > 0 || node.registered.empty()) return;
  node.idle_at = Clock::System().Now() + idle_;
  idle_nodes_.emplace_back(*node.idle_at, node_id);
  if (idle_nodes_.size() == 1) changed_.NotifyAll();
}

std::vector<uint64_t> Passthrough::TakeIdle() {
  std::vector<uint64_t> idle;
  MutexLock lock(mutex_);
  while (!stopping_ && idle.empty()) {
    const auto now = Clock::System().Now();
    while (!idle_nodes_.empty() && idle_nodes_.front().first <= now) {
      const auto [due, id] = idle_nodes_.front();
      idle_nodes_.pop_front();
      const auto it = nodes_.find(id);
      if (it == nodes_.end() || it->second.idle_at != due) continue;
      it->second.idle_at.reset();
      idle.push_back(id);
    }
    if (!idle.empty()) break;
    if (idle_nodes_.empty()) {
      changed_.Wait(mutex_);
    } else {
      changed_.WaitUntil(mutex_, idle_nodes_.front().first);
    }
  }
  if (stopping_) return {};
  return idle;
}

void Passthrough::Stop() {
  MutexLock lock(mutex_);
  stopping_ = true;
  changed_.NotifyAll();
}

PassthroughTotals Passthrough::totals() const {
  MutexLock lock(mutex_);
  return totals_;
}

}  // namespace weightfs

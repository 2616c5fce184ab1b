#include "fs/fuse/handlers.h"

#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "formats/base/byte_buffer.h"
#include "formats/base/log.h"
#include "fs/fuse/errno.h"

namespace weightfs {

namespace {

using Listing = std::shared_ptr<const Vfs::Listing>;

// Of names that expire: less than a file stays registered that nobody uses.
constexpr double kNameTimeout = 3;  // seconds
static_assert(kNameTimeout * 1000 < FuseState::kPassthroughIdle.count());

FuseState& StateOf(fuse_req_t req) {
  return *static_cast<FuseState*>(fuse_req_userdata(req));
}

// libfuse hands back the op's id. It calls this with nothing if the request is
// being answered just now.
void OnInterrupt(fuse_req_t req, void* data) {
  if (data == nullptr) return;
  StateOf(req).vfs->Interrupt(static_cast<OpId>(
      reinterpret_cast<uintptr_t>(data)));  // an id, not a pointer
}

// A request that the Vfs works on. What replies first is sent; the others, late
// after the watchdog, are dropped.
class Pending {
 public:
  Pending(fuse_req_t req, const char* operation, fuse_ino_t node)
      : Pending(StateOf(req),
                {.req = req, .operation = operation, .node = node}) {}
  Pending(FuseState& state, const Requests::Request& request)
      : Pending(state, request, state.requests.Add(request, OnInterrupt)) {}
  // One that was added before.
  Pending(FuseState& state, const Requests::Request& request,
          std::pair<RequestId, OpId> ids)
      : state_(state), id_(ids.first), request_(request) {
    request_.op = ids.second;
  }
  OpId op() const { return request_.op; }
  RequestId id() const { return id_; }
  FuseState& state() const { return state_; }
  const Requests::Request& request() const { return request_; }

  // Replies by `reply(req)`; returns what it returned, or -ENOENT if the
  // request is answered already.
  template <class F>
  int Reply(F reply) const {
    fuse_req* const req = state_.requests.Take(id_);
    if (req == nullptr) return -ENOENT;
    const int result = reply(req);
    state_.requests.Answered();
    return result;
  }
  void Fail(const Error& error) const {
    Reply([&](fuse_req_t req) {
      const bool quiet = error.code() == Code::kNotFound ||
                         error.code() == Code::kCancelled ||
                         error.told_before();
      LogAt(quiet ? LogLevel::kDebug : LogLevel::kError,
            "{}: {} op={} path={} node={:#x}", request_.operation,
            error.ToString(), request_.operation,
            state_.vfs->Describe(request_.node), request_.node);
      return fuse_reply_err(req, ToErrno(error.code()));
    });
  }

 private:
  FuseState& state_;
  const RequestId id_;
  Requests::Request request_;  // its `req` is not to be used
};

struct stat StatOf(const FuseState& state, const NodeAttr& attr) {
  struct stat st;
  std::memset(&st, 0, sizeof(st));
  st.st_ino = attr.ino;
  st.st_mode = attr.folder ? (S_IFDIR | 0555) : (S_IFREG | 0444);
  st.st_nlink = 1;
  st.st_uid = state.uid;
  st.st_gid = state.gid;
  st.st_size = static_cast<off_t>(attr.size);
  st.st_blocks = static_cast<blkcnt_t>((attr.size + 511) / 512);
  st.st_blksize = kMaxRequest;
  return st;
}

fuse_entry_param EntryOf(const FuseState& state, const NodeAttr& attr) {
  fuse_entry_param entry;
  std::memset(&entry, 0, sizeof(entry));
  entry.ino = attr.node;
  entry.entry_timeout = static_cast<double>(attr.valid.count());
  entry.attr_timeout = entry.entry_timeout;
  if (state.names_expire && Vfs::IsWholeObject(attr.node)) {
    entry.entry_timeout = kNameTimeout;
  }
  if (attr.node != 0) entry.attr = StatOf(state, attr);
  return entry;
}

// libfuse 3.17 has 64 bits for them, of which 3.14 knows the lower half.
void Unset(fuse_conn_info* conn, unsigned feature) {
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
  conn->want_ext &= ~uint64_t{feature};
#else
  conn->want &= ~feature;
#endif
}

// Empty, or why the kernel passes nothing through.
std::string AskForPassthrough([[maybe_unused]] fuse_conn_info* conn) {
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
  // A cache on a file system that is stacked itself cannot be passed through;
  // in turn, others may be stacked on the mount.
  conn->max_backing_stack_depth = 0;
  if ((conn->capable_ext & FUSE_CAP_PASSTHROUGH) == 0) {
    return "the kernel has none (Linux 6.9 with CONFIG_FUSE_PASSTHROUGH has)";
  }
  conn->want_ext |= FUSE_CAP_PASSTHROUGH;
  return "";
#else
  return fmt::format("weightfs was built with libfuse {}; it needs 3.17",
                     fuse_pkgversion());
#endif
}

void OnInit(void* userdata, fuse_conn_info* conn) {
  auto& state = *static_cast<FuseState*>(userdata);
  conn->max_write = kMaxRequest;
  conn->max_background = kMaxBackground;
  conn->congestion_threshold = kMaxBackground * 3 / 4;
  // Content never changes under a commit: nothing to invalidate.
  Unset(conn, FUSE_CAP_AUTO_INVAL_DATA);
  // The kernel waits for asynchronous direct reads without a way to interrupt:
  // not even SIGKILL would end a reader whose origin hangs.
  Unset(conn, FUSE_CAP_ASYNC_DIO);
  if (state.no_passthrough.empty()) {
    state.no_passthrough = AskForPassthrough(conn);
  }
  state.names_expire = state.no_passthrough.empty();
  if (state.no_passthrough.empty()) state.passthrough.Expect();
  state.parallel_folders = (conn->capable & FUSE_CAP_PARALLEL_DIROPS) != 0;
  MutexLock lock(state.mutex);
  state.settings.max_read = std::min(conn->max_write, kMaxRequest);
  state.settings.max_background = conn->max_background;
}

void OnLookup(fuse_req_t req, fuse_ino_t parent, const char* name) {
  if (StateOf(req).IsHidden(fuse_req_ctx(req)->pid, parent, name)) {
    // Not ENOENT, which others who look for it now would get, too.
    fuse_reply_err(req, EAGAIN);
    return;
  }
  Pending pending(req, "lookup", parent);
  pending.state().vfs->Lookup(
      pending.op(), parent, name, [pending](Result<NodeAttr> attr) {
        if (!attr.has_value()) return pending.Fail(attr.error());
        const fuse_entry_param entry = EntryOf(pending.state(), *attr);
        Passthrough& passthrough = pending.state().passthrough;
        passthrough.CountLookups({&attr->node, 1});
        const int sent = pending.Reply(
            [&](fuse_req_t r) { return fuse_reply_entry(r, &entry); });
        if (sent != 0) passthrough.Forget(attr->node, 1);
      });
}

void OnForget(fuse_req_t req, fuse_ino_t node, uint64_t lookups) {
  StateOf(req).passthrough.Forget(node, lookups);
  fuse_reply_none(req);
}

void OnForgetMulti(fuse_req_t req, size_t count, fuse_forget_data* forgets) {
  for (size_t i = 0; i < count; ++i) {
    StateOf(req).passthrough.Forget(forgets[i].ino, forgets[i].nlookup);
  }
  fuse_reply_none(req);
}

void OnGetAttr(fuse_req_t req, fuse_ino_t node, fuse_file_info*) {
  Pending pending(req, "getattr", node);
  pending.state().vfs->GetAttr(
      pending.op(), node, [pending](Result<NodeAttr> attr) {
        if (!attr.has_value()) return pending.Fail(attr.error());
        const struct stat st = StatOf(pending.state(), *attr);
        const auto valid = static_cast<double>(attr->valid.count());
        pending.Reply(
            [&](fuse_req_t r) { return fuse_reply_attr(r, &st, valid); });
      });
}

// Answers an open of what the Vfs opened; how, the passthrough decides.
void ReplyOpen(const Pending& pending, fuse_file_info info,
               Result<Vfs::OpenFile> open) {
  if (!open.has_value()) return pending.Fail(open.error());
  FuseState& state = pending.state();
  const fuse_ino_t node = pending.request().node;
  const auto through = state.passthrough.Open(node, std::move(open->sharing));
  if (!through) {
    return pending.Fail(
        Error(Code::kCorrupt,
              "what others read of it was found wrong; once they have closed "
              "it, it can be opened and is fetched anew"));
  }
  info.keep_cache = open->keep_cache && state.MayKeepPages(node) ? 1 : 0;
  info.noflush = 1;
  info.fh = 0;
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)
  if (*through > 0) {
    info.backing_id = *through;
    info.keep_cache = 0;  // not a word for files that are passed through
  }
#endif
  if (open->content != nullptr) {
    info.direct_io = 1;
    info.fh = state.AddHandle({.listing = nullptr, .content = open->content});
  }
  const int sent =
      pending.Reply([&](fuse_req_t r) { return fuse_reply_open(r, &info); });
  if (sent == 0) return;
  // Not sent: the opener is gone, and no RELEASE will come.
  state.DropHandle(info.fh);
  state.passthrough.Release(node);
}

void OnOpen(fuse_req_t req, fuse_ino_t node, fuse_file_info* fi) {
  const Pending pending(req, "open", node);
  FuseState& state = pending.state();
  auto reply = [pending, info = *fi](Result<Vfs::OpenFile> open) {
    ReplyOpen(pending, info, std::move(open));
  };
  std::shared_ptr<CacheFile> in_use;
  if (state.passthrough.Wants(node, in_use)) {
    state.vfs->OpenToShare(pending.op(), node, std::move(in_use), reply);
  } else {
    state.vfs->Open(pending.op(), node, reply);
  }
}

void OnRelease(fuse_req_t req, fuse_ino_t node, fuse_file_info* fi) {
  StateOf(req).DropHandle(fi->fh);
  StateOf(req).passthrough.Release(node);
  fuse_reply_err(req, 0);
}

void StartRead(const Pending& pending) {
  const Requests::Request& request = pending.request();
  pending.state().vfs->Read(
      pending.op(), request.node, request.offset, request.size,
      [pending](Result<std::span<const std::byte>> bytes) {
        if (!bytes.has_value()) {
          Error error = bytes.error();
          error.AddContext(fmt::format("[{}, +{})", pending.request().offset,
                                       pending.request().size));
          return pending.Fail(error);
        }
        pending.Reply([&](fuse_req_t r) {
          return fuse_reply_buf(r, reinterpret_cast<const char*>(bytes->data()),
                                bytes->size());
        });
      });
}

int ReplyBytes(fuse_req_t req, const LentBytes& bytes) {
  std::vector<iovec> parts;
  parts.reserve(bytes.parts.size());
  for (const auto& part : bytes.parts) {
    // writev's own type; nothing is written there.
    parts.push_back({const_cast<std::byte*>(part.data()), part.size()});
  }
  return fuse_reply_iov(req, parts.data(), static_cast<int>(parts.size()));
}

void OnRead(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
            fuse_file_info* fi) {
  const auto from = static_cast<uint64_t>(offset);
  FuseState& state = StateOf(req);
  // The kernel asks for no more than it was told.
  if (size > kMaxRequest) {
    fuse_reply_err(req, EINVAL);
    return;
  }
  if (fi->fh != 0) {
    const auto content = state.FindHandle(fi->fh).content;
    if (content == nullptr) {
      fuse_reply_err(req, EBADF);
      return;
    }
    const size_t start = std::min<uint64_t>(from, content->size());
    fuse_reply_buf(req, content->data() + start,
                   std::min(size, content->size() - start));
    return;
  }
  ++state.reads;
  const Pending pending(state, {.req = req,
                                .operation = "read",
                                .node = node,
                                .offset = from,
                                .size = size,
                                .resident = true});
  const ByteBuffer resident(size);
  const auto got = state.vfs->TryRead(node, from, resident.span());
  // False: the watchdog went on with it meanwhile, and used the op.
  const bool ours = state.requests.LeaveResident(pending.id());
  if (got) {
    if (ours) state.vfs->DropOp(pending.op());
    pending.Reply([&](fuse_req_t r) { return ReplyBytes(r, *got); });
  } else if (ours) {
    StartRead(pending);
  }
}

void OnOpenDir(fuse_req_t req, fuse_ino_t node, fuse_file_info* fi) {
  Pending pending(req, "opendir", node);
  pending.state().vfs->List(
      pending.op(), node,
      [pending, info = *fi](Result<Listing> listing) mutable {
        if (!listing.has_value()) return pending.Fail(listing.error());
        info.fh = pending.state().AddHandle(
            {.listing = std::move(*listing), .content = nullptr});
        info.keep_cache = 1;
        info.cache_readdir = 1;
        const int sent = pending.Reply(
            [&](fuse_req_t r) { return fuse_reply_open(r, &info); });
        if (sent != 0) pending.state().DropHandle(info.fh);
      });
}

void OnReleaseDir(fuse_req_t req, fuse_ino_t, fuse_file_info* fi) {
  StateOf(req).DropHandle(fi->fh);
  fuse_reply_err(req, 0);
}

// Entry 0 is `.`, 1 is `..`, the rest are the listing's; an entry's offset is
// the number of the next one.
void ReplyEntries(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                  uint64_t handle, const bool with_attributes) {
  FuseState& state = StateOf(req);
  const Listing open = state.FindHandle(handle).listing;
  if (open == nullptr) {
    fuse_reply_err(req, EBADF);
    return;
  }
  if (size > kMaxRequest || offset < 0) {
    fuse_reply_err(req, EINVAL);
    return;
  }
  const Vfs::Listing& listing = *open;
  std::vector<char> out(size);
  size_t used = 0;
  std::vector<uint64_t> nodes;  // that the kernel learns of
  for (auto i = static_cast<size_t>(offset); i < listing.size() + 2; ++i) {
    std::string name = i == 0 ? "." : "..";
    fuse_entry_param entry;
    std::memset(&entry, 0, sizeof(entry));
    if (i < 2) {
      // Node 0 here means: no look-up is counted.
      entry.attr.st_ino = node;
      entry.attr.st_mode = S_IFDIR;
    } else {
      name = listing.name(i - 2);
      entry = EntryOf(state, listing.attr(i - 2));
    }
    const auto next = static_cast<off_t>(i + 1);
    const size_t needed =
        with_attributes
            ? fuse_add_direntry_plus(req, out.data() + used, size - used,
                                     name.c_str(), &entry, next)
            : fuse_add_direntry(req, out.data() + used, size - used,
                                name.c_str(), &entry.attr, next);
    if (needed > size - used) break;
    used += needed;
    if (with_attributes && entry.ino != 0) nodes.push_back(entry.ino);
  }
  state.passthrough.CountLookups(nodes);
  if (fuse_reply_buf(req, out.data(), used) == 0) return;
  for (const uint64_t forgotten : nodes) {
    state.passthrough.Forget(forgotten, 1);
  }
}

void OnReadDir(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
               fuse_file_info* fi) {
  ReplyEntries(req, node, size, offset, fi->fh, false);
}

void OnReadDirPlus(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
                   fuse_file_info* fi) {
  ReplyEntries(req, node, size, offset, fi->fh, true);
}

// Xattr calls with size 0 ask for the size.
void ReplyXattr(const Pending& pending, size_t size, const std::string& value) {
  pending.Reply([&](fuse_req_t req) {
    if (size == 0) return fuse_reply_xattr(req, value.size());
    if (size < value.size()) return fuse_reply_err(req, ERANGE);
    return fuse_reply_buf(req, value.data(), value.size());
  });
}

void OnGetXattr(fuse_req_t req, fuse_ino_t node, const char* name,
                size_t size) {
  Pending pending(req, "getxattr", node);
  pending.state().vfs->GetXattr(
      pending.op(), node, name, [pending, size](Result<std::string> value) {
        if (value.has_value()) return ReplyXattr(pending, size, *value);
        if (value.error().code() != Code::kNotFound) {
          return pending.Fail(value.error());
        }
        pending.Reply([](fuse_req_t r) { return fuse_reply_err(r, ENODATA); });
      });
}

void OnListXattr(fuse_req_t req, fuse_ino_t node, size_t size) {
  Pending pending(req, "listxattr", node);
  pending.state().vfs->ListXattrs(
      pending.op(), node,
      [pending, size](Result<std::vector<std::string>> names) {
        if (!names.has_value()) return pending.Fail(names.error());
        std::string list;
        for (const std::string& name : *names) list += name + '\0';
        ReplyXattr(pending, size, list);
      });
}

void OnStatFs(fuse_req_t req, fuse_ino_t) {
  constexpr uint64_t kBlock = 4096;
  const FsTotals totals = StateOf(req).vfs->Totals();
  struct statvfs st;
  std::memset(&st, 0, sizeof(st));
  st.f_bsize = kMaxRequest;
  st.f_frsize = kBlock;
  st.f_blocks = (totals.bytes + kBlock - 1) / kBlock;
  st.f_files = totals.files;
  st.f_namemax = 255;
  st.f_flag = ST_RDONLY;
  fuse_reply_statfs(req, &st);
}

}  // namespace

uint64_t FuseState::AddHandle(Handle handle) {
  MutexLock lock(mutex);
  const uint64_t fh = next_handle++;
  handles.emplace(fh, std::move(handle));
  return fh;
}

FuseState::Handle FuseState::FindHandle(uint64_t fh) {
  MutexLock lock(mutex);
  const auto it = handles.find(fh);
  return it != handles.end() ? it->second : Handle{};
}

void FuseState::DropHandle(uint64_t fh) {
  Handle dropped;  // destroyed without the lock
  MutexLock lock(mutex);
  const auto it = handles.find(fh);
  if (it == handles.end()) return;
  dropped = std::move(it->second);
  handles.erase(it);
}

bool FuseState::IsHidden(pid_t from, uint64_t folder, std::string_view name) {
  MutexLock lock(mutex);
  if (!hidden || hidden->from != from || hidden->folder != folder ||
      hidden->name != name) {
    return false;
  }
  found_hidden = true;
  return true;
}

bool FuseState::MayKeepPages(uint64_t node) {
  MutexLock lock(mutex);
  opened.insert(node);
  return !stale.contains(node);
}

FuseState::FuseState(Vfs& served, const RequestTimes& times,
                     std::chrono::milliseconds passthrough_idle)
    : vfs(&served),
      requests(served, times,
               [this](RequestId id, const Requests::Request& request) {
                 StartRead(Pending(*this, request, {id, request.op}));
               }),
      passthrough(passthrough_idle) {}

const fuse_lowlevel_ops& FuseHandlers() {
  static const fuse_lowlevel_ops handlers = [] {
    fuse_lowlevel_ops ops;
    std::memset(&ops, 0, sizeof(ops));
    ops.init = OnInit;
    ops.lookup = OnLookup;
    ops.forget = OnForget;
    ops.forget_multi = OnForgetMulti;
    ops.getattr = OnGetAttr;
    ops.open = OnOpen;
    ops.release = OnRelease;
    ops.read = OnRead;
    ops.opendir = OnOpenDir;
    ops.releasedir = OnReleaseDir;
    ops.readdir = OnReadDir;
    ops.readdirplus = OnReadDirPlus;
    ops.getxattr = OnGetXattr;
    ops.listxattr = OnListXattr;
    ops.statfs = OnStatFs;
    return ops;
  }();
  return handlers;
}

}  // namespace weightfs

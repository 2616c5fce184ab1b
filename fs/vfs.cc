#include "fs/vfs.h"

#include <atomic>
#include <utility>

#include "fs/describe.h"
#include "fs/vfs_impl.h"

namespace weightfs {
namespace {

// How long an open may look for what the kernel may read by itself: longer than
// the cache's own patience.
constexpr std::chrono::seconds kSharePatience{6};

}  // namespace

Vfs::Vfs(Repo& repo, WorkerPool& pool, TimerQueue& timers,
         const VfsOptions& options)
    : parked_(timers),
      impl_(std::make_unique<Impl>(repo, parked_, pool, options)) {}

Vfs::~Vfs() = default;

void Vfs::SetStatus(std::function<std::string()> render) {
  impl_->render_status_ = std::move(render);
}

void Vfs::Lookup(OpId op, uint64_t parent, std::string_view name,
                 Done<NodeAttr> done) {
  const NodeId id = UnpackNode(parent);
  impl_->WithIndex<NodeAttr>(
      op, id, std::move(done),
      [this, id, wanted = std::string(name)](OpId answered,
                                             const Impl::IndexPtr& index,
                                             const Done<NodeAttr>& reply) {
        const auto child = impl_->Child(id, wanted, index.get());
        if (!child) {
          NodeAttr absent;
          absent.valid = kForever;
          return impl_->Reply<NodeAttr>(answered, reply, absent);
        }
        if (child->kind == NodeKind::kMetaFile) {
          return GetAttr(answered, PackNode(*child), reply);
        }
        impl_->Reply<NodeAttr>(answered, reply,
                               impl_->AttrOf(*child, index.get()));
      });
}

void Vfs::GetAttr(OpId op, uint64_t node, Done<NodeAttr> done) {
  const NodeId id = UnpackNode(node);
  impl_->WithIndex<NodeAttr>(
      op, id, std::move(done),
      [this, id](OpId answered, const Impl::IndexPtr& index,
                 const Done<NodeAttr>& reply) {
        if (id.kind != NodeKind::kMetaFile) {
          return impl_->Reply<NodeAttr>(answered, reply,
                                        impl_->AttrOf(id, index.get()));
        }
        impl_->RenderMeta(answered, static_cast<MetaFile>(id.ordinal),
                          [this, id, reply](auto content) {
                            if (!content.has_value()) {
                              return reply(content.error());
                            }
                            NodeAttr attr = impl_->AttrOf(id, nullptr);
                            attr.size = (*content)->size();
                            reply(attr);
                          });
      });
}

void Vfs::List(OpId op, uint64_t node,
               Done<std::shared_ptr<const Listing>> done) {
  using ListingPtr = std::shared_ptr<const Listing>;
  const NodeId id = UnpackNode(node);
  impl_->WithIndex<ListingPtr>(
      op, id, std::move(done),
      [this, id](OpId answered, const Impl::IndexPtr& index,
                 const Done<ListingPtr>& reply) {
        impl_->Reply<ListingPtr>(answered, reply, impl_->ListingOf(id, index));
      });
}

void Vfs::Open(OpId op, uint64_t node, Done<OpenFile> done) {
  const NodeId id = UnpackNode(node);
  impl_->WithIndex<OpenFile>(
      op, id, std::move(done),
      [this, id](OpId answered, const Impl::IndexPtr&,
                 const Done<OpenFile>& reply) {
        if (id.kind != NodeKind::kMetaFile) {
          return impl_->Reply<OpenFile>(answered, reply, OpenFile{});
        }
        impl_->RenderMeta(answered, static_cast<MetaFile>(id.ordinal),
                          [reply](auto content) {
                            if (!content.has_value()) {
                              return reply(content.error());
                            }
                            OpenFile open;
                            open.keep_cache = false;
                            open.content = std::move(*content);
                            reply(std::move(open));
                          });
      });
}

bool Vfs::IsWholeObject(uint64_t node) {
  return UnpackNode(node).kind == NodeKind::kRepoFile;
}

void Vfs::OpenToShare(OpId op, uint64_t node, std::shared_ptr<CacheFile> in_use,
                      Done<OpenFile> done) {
  const NodeId id = UnpackNode(node);
  const Result<> valid = impl_->Check(id, nullptr);
  if (!valid.has_value()) {
    return impl_->Reply<OpenFile>(op, done, valid.error());
  }
  auto shared = std::make_shared<Done<OpenFile>>(std::move(done));
  const bool parked =
      parked_.Park(op, parked_.Started(op) + kSharePatience,
                   {.where = [] { return std::string("the cache"); },
                    .fail =
                        [shared](Error error) {
                          // Its time is over: it opens all the same.
                          if (error.code() == Code::kUnavailable) {
                            return (*shared)(OpenFile{});
                          }
                          (*shared)(std::move(error));
                        },
                    .abort = nullptr});
  if (!parked) return;
  impl_->pool_.Submit(
      [this, op, shared, file = id.ordinal, used = std::move(in_use)] {
        OpenFile open;
        open.sharing = impl_->repo_.ShareFile(file, used);
        if (parked_.Take(op)) (*shared)(std::move(open));
      });
}

std::optional<Vfs::Place> Vfs::PlaceOf(uint64_t node) const {
  const NodeId id = UnpackNode(node);
  if (!impl_->Check(id, nullptr).has_value()) return std::nullopt;
  const std::string& path = impl_->repo_.snapshot().files[id.ordinal].path;
  const size_t slash = path.rfind('/');
  const bool on_top = slash == std::string::npos;
  const auto folder =
      impl_->tree_.FindFolder(on_top ? "" : path.substr(0, slash));
  if (!folder) return std::nullopt;
  return Place{PackNode({.kind = NodeKind::kRepoFolder, .ordinal = *folder}),
               on_top ? path : path.substr(slash + 1)};
}

void Vfs::Impl::RenderMeta(OpId op, MetaFile file,
                           Done<std::shared_ptr<const std::string>> done) {
  using Content = std::shared_ptr<const std::string>;
  if (file == MetaFile::kStatus) {
    return OnPool<Content>(op, std::move(done), [this]() -> Result<Content> {
      return std::make_shared<const std::string>(
          render_status_ ? render_status_() : "{}\n");
    });
  }
  Content known;
  {
    MutexLock lock(mutex_);
    known = index_json_;
  }
  if (known != nullptr) return Reply<Content>(op, done, std::move(known));

  // Each shown set counts down; the last one renders.
  struct Waiting {
    Done<Content> done;
    std::atomic<size_t> left;
    Mutex mutex;
    std::vector<Repo::Indexed> indexes GUARDED_BY(mutex);
  };
  auto waiting = std::make_shared<Waiting>();
  waiting->done = std::move(done);
  waiting->left = repo_.catalog().shown().size() + 1;
  {
    MutexLock lock(waiting->mutex);
    waiting->indexes.resize(repo_.catalog().sets().size());
  }
  const bool parked = parked_.Park(
      op, parked_.Started(op) + options_.metadata_timeout,
      {.where = [] { return std::string("the sets' indexes"); },
       .fail =
           [waiting](Error error) {
             waiting->done(std::move(error).AddContext("the sets' indexes"));
           },
       .abort = nullptr});
  if (!parked) return;
  const auto count_down = [this, op, waiting] {
    if (--waiting->left != 0 || !parked_.Take(op)) return;
    std::vector<Repo::Indexed> indexes;
    {
      MutexLock lock(waiting->mutex);
      indexes.swap(waiting->indexes);
    }
    bool final = true;
    for (const Repo::Indexed& indexed : indexes) final &= indexed.has_value();
    auto content =
        std::make_shared<const std::string>(RenderIndexJson(repo_, indexes));
    if (final) {
      MutexLock lock(mutex_);
      index_json_ = content;
    }
    waiting->done(std::move(content));
  };
  for (const auto& [folder, set] : repo_.catalog().shown()) {
    repo_.WhenIndexed(
        set, [waiting, count_down, s = set](const Repo::Indexed& indexed) {
          {
            MutexLock lock(waiting->mutex);
            waiting->indexes[s] = indexed;
          }
          count_down();
        });
  }
  count_down();
}

FsTotals Vfs::Totals() const {
  FsTotals totals;
  totals.files = impl_->repo_.snapshot().files.size();
  for (const FileInfo& file : impl_->repo_.snapshot().files) {
    totals.bytes += file.size;
  }
  return totals;
}

std::string Vfs::Describe(uint64_t node) {
  const NodeId id = UnpackNode(node);
  const auto set = impl_->SetOf(id);
  const auto index = set ? impl_->repo_.FindIndex(*set) : nullptr;
  if (!impl_->Check(id, index.get()).has_value() &&
      id.kind != NodeKind::kNameFolder && id.kind != NodeKind::kTensorFile) {
    return "?";
  }
  return impl_->PathOf(id, index.get());
}

void Vfs::LearnOrder(const std::vector<FileRun>& order) {
  impl_->order_.Learn(order);
}

uint64_t Vfs::order_touches() const { return impl_->order_.touches(); }

std::vector<FileRun> Vfs::OrderToKeep() const { return impl_->CollectOrder(); }

}  // namespace weightfs

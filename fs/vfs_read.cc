// Reads of the mount: from resident memory at once, else parked.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "formats/base/byte_buffer.h"
#include "formats/base/checked.h"
#include "fs/vfs_impl.h"

namespace weightfs {
namespace {

// An object's own deadline comes first: its error knows what was tried.
constexpr std::chrono::seconds kDeadlineSlack{2};

constexpr uint64_t kPage = 4096;

// A shorter piece is copied sooner than it is lent.
constexpr size_t kLeastLent = size_t{32} << 10;

// Where `part` begins in `all`, if it lies there.
std::optional<size_t> PlaceIn(std::span<const std::byte> all,
                              std::span<const std::byte> part) {
  const auto start = reinterpret_cast<uintptr_t>(all.data());
  const auto begin = reinterpret_cast<uintptr_t>(part.data());
  if (begin < start || begin + part.size() > start + all.size()) {
    return std::nullopt;
  }
  return begin - start;
}

void AddCopied(LentBytes& bytes, std::span<const std::byte> part) {
  if (!part.empty()) bytes.parts.push_back(part);
}

void AddLent(LentBytes& bytes, LentBytes lent) {
  bytes.parts.insert(bytes.parts.end(), lent.parts.begin(), lent.parts.end());
  std::move(lent.owners.begin(), lent.owners.end(),
            std::back_inserter(bytes.owners));
}

// A parked read: its buffer, its plan, and what was started for it. Lives until
// the last of its object reads ended, even if it was answered before.
struct ParkedRead {
  explicit ParkedRead(size_t size) : buffer(size) {}

  const ByteBuffer buffer;
  Vfs::Done<std::span<const std::byte>> done;
  Vfs::Impl::Reading reading;
  std::atomic<size_t> left = 1;  // one is held while reads are started

  Mutex mutex;
  std::vector<std::pair<std::shared_ptr<Object>, ReadId>> started
      GUARDED_BY(mutex);
  bool aborted GUARDED_BY(mutex) = false;
  std::optional<Error> error GUARDED_BY(mutex);

  std::string WaitsFor() EXCLUDES(mutex) {
    std::vector<std::pair<std::shared_ptr<Object>, ReadId>> reads;
    {
      MutexLock lock(mutex);
      reads = started;
    }
    if (reads.empty()) return "a thread that may use the disk";
    std::string all;
    for (const auto& [object, id] : reads) {
      all += (all.empty() ? "" : ", ") + object->WaitsFor(id);
    }
    return all;
  }

  Clock::Time Until(Clock::Time deadline) EXCLUDES(mutex) {
    std::vector<std::pair<std::shared_ptr<Object>, ReadId>> reads;
    {
      MutexLock lock(mutex);
      reads = started;
    }
    Clock::Time latest = deadline;
    for (const auto& [object, id] : reads) {
      latest = std::max(latest, object->Until(id, deadline));
    }
    return latest;
  }

  void Abort() EXCLUDES(mutex) {
    std::vector<std::pair<std::shared_ptr<Object>, ReadId>> reads;
    {
      MutexLock lock(mutex);
      aborted = true;
      reads.swap(started);
    }
    for (auto& [object, id] : reads) object->CancelRead(id);
  }
};

// `slack`: an extent that begins less than so far behind `offset` counts, but
// for the header's end. REQUIRES: there are extents.
ByteRange ExtentAt(const std::vector<IndexedSet::Extent>& extents,
                   uint64_t offset, uint64_t slack) {
  auto next = std::upper_bound(
      extents.begin(), extents.end(), offset,
      [](uint64_t o, const IndexedSet::Extent& e) { return o < e.begin; });
  if (next == extents.begin()) return {0, next->begin};  // the header
  if (next == extents.end() || next->begin - offset >= slack) --next;
  return {next->begin, next->end - next->begin};
}

}  // namespace

Readahead::Extents Vfs::Impl::ExtentsOf(uint32_t file, ByteRange read) const {
  const ByteRange whole{0, repo_.snapshot().files[file].size};
  const auto set = set_of_file_[file];
  const IndexPtr index = set ? repo_.FindIndex(*set) : nullptr;
  if (index == nullptr) return whole;
  const auto it = std::find(index->files.begin(), index->files.end(), file);
  if (it == index->files.end()) return whole;
  const auto& extents =
      index->extents[static_cast<size_t>(it - index->files.begin())];
  if (extents.empty()) return whole;
  // A page that begins in one tensor and goes on into the next is asked for by
  // who wants the next.
  return {ExtentAt(extents, read.offset, kPage),
          ExtentAt(extents, read.offset + read.length - 1, 0).offset, false};
}

Result<Vfs::Impl::Reading> Vfs::Impl::PlanRead(const NodeId& id,
                                               const IndexedSet* index,
                                               uint64_t offset,
                                               std::span<std::byte> out) const {
  Reading reading;
  if (id.kind == NodeKind::kRepoFile) {
    if (out.empty()) return reading;
    reading.sources.push_back({id.ordinal, offset, out});
    reading.in = ExtentsOf(id.ordinal, {offset, out.size()});
    return reading;
  }
  ASSIGN_OR_RETURN(const VirtualFile file, TensorFile(id, *index));
  ASSIGN_OR_RETURN(reading.plan, file.Plan(offset, out));
  for (const SourceRead& read : reading.plan.reads()) {
    reading.sources.push_back(
        {index->files[read.object], read.offset, read.dest});
  }
  // What else this file may need: the range that the read's first byte is in.
  if (!reading.sources.empty()) {
    const Source& first = reading.sources.front();
    for (const SourceRange& range : index->index.tensors()[id.ordinal].data) {
      if (index->files[range.object] == first.file &&
          first.offset >= range.offset &&
          first.offset - range.offset < range.length) {
        reading.in = {{range.offset, range.length}, range.offset, true};
      }
    }
  }
  return reading;
}

void Vfs::Impl::ReadAhead(const Reading& reading) {
  if (reading.sources.empty() || reading.in.first.length == 0) return;
  const Source& first = reading.sources.front();
  FollowOrder(first, reading.in.first);
  const uint64_t size = repo_.snapshot().files[first.file].size;
  const ByteRange ahead = readahead_.OnRead(
      first.file, size, {first.offset, first.dest.size()}, reading.in);
  if (ahead.length == 0) return;
  if (auto object = repo_.FindOpenFile(first.file)) {
    // Looks at the cache: not for a FUSE thread.
    pool_.Submit([this, object, ahead, file = first.file] {
      const uint64_t taken = object->Prefetch(ahead.offset, ahead.length);
      if (taken < ahead.length) readahead_.Refused(file, ahead, taken);
    });
  }
}

void Vfs::Impl::FollowOrder(const Source& read, ByteRange extent) {
  auto ahead =
      order_.OnRead(read.file, {read.offset, read.dest.size()}, extent);
  if (ahead.empty()) return;
  pool_.Submit([this, ahead = std::move(ahead)] {
    for (const FileRun& run : ahead) {
      repo_.OpenFile(run.file)->Prefetch(run.offset, run.length);
    }
  });
}

std::vector<FileRun> Vfs::Impl::CollectOrder() const {
  return order_.Collect([this](uint32_t file, uint64_t offset) {
    return ExtentsOf(file, {offset, 1}).first;
  });
}

std::optional<LentBytes> Vfs::TryRead(uint64_t node, uint64_t offset,
                                      std::span<std::byte> out) {
  const NodeId id = UnpackNode(node);
  const auto set = impl_->SetOf(id);
  const auto index = set ? impl_->repo_.FindIndex(*set) : nullptr;
  if ((set && index == nullptr) || !impl_->Check(id, index.get()).has_value()) {
    return std::nullopt;
  }
  if (id.kind != NodeKind::kRepoFile && id.kind != NodeKind::kTensorFile) {
    return std::nullopt;
  }
  const uint64_t size = impl_->SizeOf(id, index.get());
  if (offset >= size) return LentBytes();
  out = out.first(std::min<uint64_t>(out.size(), size - offset));
  auto reading = impl_->PlanRead(id, index.get(), offset, out);
  if (!reading.has_value()) return std::nullopt;
  LentBytes bytes;
  size_t answered = 0;  // of `out`, from its start
  for (const Impl::Source& source : reading->sources) {
    auto object = impl_->repo_.FindOpenFile(source.file);
    if (object == nullptr) return std::nullopt;
    const auto at = PlaceIn(out, source.dest);
    auto lent = at && source.dest.size() >= kLeastLent
                    ? object->TryLend(source.offset, source.dest.size())
                    : std::nullopt;
    if (lent) {
      AddCopied(bytes, out.subspan(answered, *at - answered));
      AddLent(bytes, std::move(*lent));
      answered = *at + source.dest.size();
    } else if (!object->TryRead(source.offset, source.dest)) {
      return std::nullopt;
    }
  }
  reading->plan.Finish();
  AddCopied(bytes, out.subspan(answered));
  impl_->ReadAhead(*reading);
  return bytes;
}

namespace {

// Ends one of the read's parts; the last one answers.
void EndPart(ParkedOps& parked, OpId op,
             const std::shared_ptr<ParkedRead>& read, Result<> result) {
  if (!result.has_value()) {
    MutexLock lock(read->mutex);
    if (!read->error) read->error = std::move(result).error();
  }
  if (--read->left != 0 || !parked.Take(op)) return;
  std::optional<Error> error;
  {
    MutexLock lock(read->mutex);
    error = read->error;
  }
  if (error) return read->done(std::move(*error));
  read->reading.plan.Finish();
  read->done(read->buffer.span());
}

void StartParts(Vfs::Impl& impl, OpId op,
                const std::shared_ptr<ParkedRead>& read, Clock::Time deadline) {
  for (const Vfs::Impl::Source& source : read->reading.sources) {
    {
      MutexLock lock(read->mutex);
      if (read->aborted) break;
    }
    auto object = impl.repo_.OpenFile(source.file);
    ++read->left;
    const ReadId id =
        object->StartRead(source.offset, source.dest, ReadOptions{deadline},
                          [&parked = impl.parked_, op, read](Result<> result) {
                            EndPart(parked, op, read, std::move(result));
                          });
    bool cancel = false;
    {
      MutexLock lock(read->mutex);
      cancel = read->aborted;
      if (!cancel) read->started.emplace_back(object, id);
    }
    if (cancel) object->CancelRead(id);
  }
  EndPart(impl.parked_, op, read, {});
}

}  // namespace

void Vfs::Read(OpId op, uint64_t node, uint64_t offset, size_t size,
               Done<std::span<const std::byte>> done) {
  using Bytes = std::span<const std::byte>;
  const NodeId id = UnpackNode(node);
  if (id.kind != NodeKind::kRepoFile && id.kind != NodeKind::kTensorFile) {
    return impl_->Reply<Bytes>(op, done, Error(Code::kInvalid, "not a file"));
  }
  impl_->WithIndex<Bytes>(
      op, id, std::move(done),
      [this, id, offset, size](OpId parked, const Impl::IndexPtr& index,
                               const Done<Bytes>& reply) {
        const uint64_t file_size = impl_->SizeOf(id, index.get());
        if (offset >= file_size || size == 0) {
          return impl_->Reply<Bytes>(parked, reply, Bytes());
        }
        auto read = std::make_shared<ParkedRead>(
            std::min<uint64_t>(size, file_size - offset));
        auto reading =
            impl_->PlanRead(id, index.get(), offset, read->buffer.span());
        if (!reading.has_value()) {
          return impl_->Reply<Bytes>(parked, reply, reading.error());
        }
        read->reading = std::move(*reading);
        read->done = reply;
        const auto deadline =
            parked_.Started(parked) + impl_->options_.read_timeout;
        const bool parks = parked_.Park(
            parked, deadline + kDeadlineSlack,
            {.where = [read] { return read->WaitsFor(); },
             .fail = [read](Error error) { read->done(std::move(error)); },
             .abort = [read] { read->Abort(); },
             .until =
                 [read, deadline] {
                   const auto later = read->Until(deadline);
                   return later > deadline ? later + kDeadlineSlack
                                           : Clock::Time();
                 }});
        if (!parks) return;
        impl_->pool_.Submit([this, parked, read, deadline] {
          StartParts(*impl_, parked, read, deadline);
          impl_->ReadAhead(read->reading);
        });
      });
}

}  // namespace weightfs

#include "cache/meta_file.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>

#include "cache/cache_disk.h"
#include "formats/base/byte_reader.h"
#include "formats/base/checked.h"

namespace weightfs {
namespace {

constexpr std::array<char, 8> kMagic = {'w', 'f', 's', 'm',
                                        'e', 't', 'a', '\n'};
constexpr size_t kSlabBytes = 2 * sizeof(uint32_t);
constexpr size_t kIdBytes = 32;
constexpr size_t kCheckOffset = kMetaFixedSize - sizeof(uint64_t);
constexpr size_t kStateOffset = kMetaFixedSize;
constexpr size_t kVerifiedOffset = kStateOffset + 4;
constexpr size_t kBootIdOffset = kVerifiedOffset + 4;
constexpr size_t kOwnerOffset = kBootIdOffset + 16;

uint64_t Xxh3(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

uint64_t DivideUp(uint64_t value, uint64_t unit) {
  return value / unit + (value % unit != 0 ? 1 : 0);
}

uint32_t KindNumber(ContentId::Kind kind) {
  switch (kind) {
    case ContentId::Kind::kSha256:
      return 1;
    case ContentId::Kind::kGit:
      return 2;
    case ContentId::Kind::kStat:
      break;
  }
  return 0;
}

int HexDigit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

// The header's fields, written one after the other.
class HeaderWriter {
 public:
  explicit HeaderWriter(std::span<std::byte> out) : out_(out) {}

  template <class T>
  void Add(T value) {
    std::memcpy(out_.data() + offset_, &value, sizeof(T));
    offset_ += sizeof(T);
  }
  void AddHex(std::string_view hex) {
    for (size_t i = 0; i + 1 < hex.size(); i += 2) {
      Add(static_cast<uint8_t>(HexDigit(hex[i]) * 16 + HexDigit(hex[i + 1])));
    }
  }
  size_t offset() const { return offset_; }

 private:
  const std::span<std::byte> out_;
  size_t offset_ = 0;
};

template <class T>
Result<> Expect(ByteReader& reader, std::string_view field, T wanted) {
  ASSIGN_OR_RETURN(const T found, reader.Read<T>(field));
  if (found == wanted) return {};
  return MakeError(Code::kCorrupt, "meta: {} is {}, not {}", field, found,
                   wanted);
}

}  // namespace

MetaLayout MetaLayout::For(uint64_t object_size) {
  assert(object_size <= kMaxObjectSize);
  MetaLayout layout{};
  layout.object_size = object_size;
  layout.granules = DivideUp(object_size, kGranuleSize);
  layout.slabs = DivideUp(object_size, kSlabSize);
  layout.entries_offset = kMetaHeaderSize + layout.slabs * kSlabBytes;
  layout.file_size =
      AlignUp(layout.entries_offset + layout.granules * sizeof(uint64_t), 4096);
  return layout;
}

std::array<std::byte, kMetaHeaderSize> EncodeMetaHeader(const ContentId& id,
                                                        uint64_t object_size,
                                                        uint64_t owner) {
  const MetaLayout layout = MetaLayout::For(object_size);
  assert(id.value.size() <= 2 * kIdBytes);
  std::array<std::byte, kMetaHeaderSize> header{};
  HeaderWriter writer(header);
  writer.Add(kMagic);
  writer.Add(kMetaVersion);
  writer.Add(static_cast<uint32_t>(kMetaHeaderSize));
  writer.Add(layout.object_size);
  writer.Add(static_cast<uint32_t>(kGranuleSize));
  writer.Add(static_cast<uint32_t>(kSlabSize));
  writer.Add(layout.granules);
  writer.Add(layout.slabs);
  writer.Add(layout.entries_offset);
  writer.Add(layout.file_size);
  writer.Add(KindNumber(id.kind));
  writer.Add(uint32_t{0});
  writer.AddHex(id.value);
  const uint64_t check = Xxh3(std::span(header).first(kCheckOffset));
  std::memcpy(header.data() + kCheckOffset, &check, sizeof(check));
  std::memcpy(header.data() + kOwnerOffset, &owner, sizeof(owner));
  return header;
}

Result<> CheckMetaHeader(std::span<const std::byte> header, const ContentId& id,
                         uint64_t object_size) {
  if (header.size() < kMetaHeaderSize) {
    return MakeError(Code::kCorrupt, "meta: {} bytes, no header",
                     header.size());
  }
  if (std::memcmp(header.data(), kMagic.data(), kMagic.size()) != 0) {
    return Error(Code::kCorrupt, "meta: bad magic");
  }
  ByteReader reader("meta", header);
  RETURN_IF_ERROR(reader.Skip("magic", kMagic.size()));
  RETURN_IF_ERROR(Expect(reader, "version", kMetaVersion));
  RETURN_IF_ERROR(
      Expect(reader, "header size", static_cast<uint32_t>(kMetaHeaderSize)));
  RETURN_IF_ERROR(Expect(reader, "object size", object_size));
  // The other fixed fields follow from the id and the size.
  const auto wanted = EncodeMetaHeader(id, object_size, 0);
  if (std::memcmp(header.data(), wanted.data(), kMetaFixedSize) != 0) {
    return MakeError(Code::kCorrupt, "meta: damaged, or not of {}",
                     id.ToString());
  }
  ByteReader state_reader("meta", header.subspan(kStateOffset));
  ASSIGN_OR_RETURN(const auto state, state_reader.Read<uint32_t>("state"));
  ASSIGN_OR_RETURN(const auto verified,
                   state_reader.Read<uint32_t>("verified"));
  if (verified > 1) {
    return MakeError(Code::kCorrupt, "meta: verified is {}", verified);
  }
  if (state == static_cast<uint32_t>(MetaState::kOpen) ||
      state == static_cast<uint32_t>(MetaState::kSealed)) {
    return {};
  }
  if (state == static_cast<uint32_t>(MetaState::kPoisoned)) {
    return Error(Code::kCorrupt, "meta: the object's bytes are known wrong");
  }
  return MakeError(Code::kCorrupt, "meta: unknown state {}", state);
}

uint64_t GranuleHash(std::span<const std::byte> bytes) {
  const uint64_t hash = Xxh3(bytes);
  return hash != 0 ? hash : 1;
}

Result<std::unique_ptr<MetaFile>> MetaFile::Open(int fd, const ContentId& id,
                                                 uint64_t object_size,
                                                 const std::string& name) {
  const MetaLayout layout = MetaLayout::For(object_size);
  struct stat status {};
  if (::fstat(fd, &status) != 0) return DiskError(errno, name);
  if (!S_ISREG(status.st_mode) ||
      static_cast<uint64_t>(status.st_size) != layout.file_size) {
    return MakeError(Code::kCorrupt, "meta: {} bytes, not {}", status.st_size,
                     layout.file_size);
  }
  ASSIGN_OR_RETURN(auto mapping,
                   GuardedMapping::Map(fd, layout.file_size, name));
  std::array<std::byte, kMetaHeaderSize> header{};
  std::memcpy(header.data(), mapping->bytes().data(), header.size());
  RETURN_IF_ERROR(CheckMetaHeader(header, id, object_size));
  return std::unique_ptr<MetaFile>(new MetaFile(std::move(mapping), layout));
}

void MetaFile::Wipe(uint64_t granule, uint64_t seen) {
  SetVerified(false);
  Unseal();
  StartGeneration(granule * kGranuleSize / kSlabSize);
  EntryRef(granule).compare_exchange_strong(seen, 0, std::memory_order_acq_rel);
}

MetaState MetaFile::state() const {
  return static_cast<MetaState>(
      HeaderWord(kStateOffset).load(std::memory_order_acquire));
}

void MetaFile::Poison() {
  SetVerified(false);
  HeaderWord(kStateOffset)
      .store(static_cast<uint32_t>(MetaState::kPoisoned),
             std::memory_order_release);
}

bool MetaFile::IsSealed(const BootId& boot) const {
  if (state() != MetaState::kSealed) return false;
  // Stored before the state, and whoever seals holds pins on all slabs.
  BootId stored{};
  std::memcpy(stored.data(), mapping_->bytes().data() + kBootIdOffset,
              stored.size());
  return stored == boot && !faulted();
}

void MetaFile::Seal(const BootId& boot) {
  for (size_t i = 0; i < boot.size(); i += sizeof(uint32_t)) {
    uint32_t word = 0;
    std::memcpy(&word, boot.data() + i, sizeof(word));
    HeaderWord(kBootIdOffset + i).store(word, std::memory_order_relaxed);
  }
  uint32_t open = static_cast<uint32_t>(MetaState::kOpen);
  HeaderWord(kStateOffset)
      .compare_exchange_strong(open, static_cast<uint32_t>(MetaState::kSealed),
                               std::memory_order_acq_rel);
}

void MetaFile::Unseal() {
  uint32_t sealed = static_cast<uint32_t>(MetaState::kSealed);
  HeaderWord(kStateOffset)
      .compare_exchange_strong(sealed, static_cast<uint32_t>(MetaState::kOpen),
                               std::memory_order_acq_rel);
}

bool MetaFile::verified() const {
  return HeaderWord(kVerifiedOffset).load(std::memory_order_acquire) == 1;
}

void MetaFile::SetVerified(bool verified) {
  const std::atomic_ref<uint32_t> word = HeaderWord(kVerifiedOffset);
  // Read first: a page that nobody writes needs no write-back.
  if (word.load(std::memory_order_acquire) != (verified ? 1U : 0U)) {
    word.store(verified ? 1 : 0);
  }
}

uint64_t MetaFile::owner() const {
  uint64_t owner = 0;
  std::memcpy(&owner, mapping_->bytes().data() + kOwnerOffset, sizeof(owner));
  return owner;
}

int MetaFile::Sync(CacheDisk& disk, uint64_t slab) {
  constexpr uint64_t kPerSlab = kSlabSize / kGranuleSize;
  const uint64_t begin = slab * kPerSlab;
  const uint64_t end = std::min(begin + kPerSlab, layout_.granules);
  const auto bytes = mapping_->bytes();
  const auto entries =
      bytes.subspan(layout_.entries_offset + begin * sizeof(uint64_t),
                    (end - begin) * sizeof(uint64_t));
  const auto head = bytes.first(kMetaHeaderSize + (slab + 1) * kSlabBytes);
  const int result = disk.SyncMapping(head);
  return result != 0 ? result : disk.SyncMapping(entries);
}

void MetaFile::Touch(uint64_t slab, uint32_t minutes) {
  std::atomic_ref<uint32_t> recency = SlabRef(slab, 0);
  // Read first: a page that nobody writes needs no write-back.
  if (recency.load(std::memory_order_relaxed) != minutes) {
    recency.store(minutes, std::memory_order_relaxed);
  }
}

uint32_t MetaFile::Recency(uint64_t slab) const {
  return SlabRef(slab, 0).load(std::memory_order_relaxed);
}

std::atomic_ref<uint32_t> MetaFile::HeaderWord(size_t offset) const {
  return std::atomic_ref<uint32_t>(
      *reinterpret_cast<uint32_t*>(mapping_->bytes().data() + offset));
}

std::atomic_ref<uint64_t> MetaFile::EntryRef(uint64_t granule) const {
  assert(granule < layout_.granules);
  // Aligned: the mapping to a page, the offset to 8.
  return std::atomic_ref<uint64_t>(reinterpret_cast<uint64_t*>(
      mapping_->bytes().data() + layout_.entries_offset)[granule]);
}

std::atomic_ref<uint32_t> MetaFile::SlabRef(uint64_t slab, size_t field) const {
  assert(slab < layout_.slabs);
  return std::atomic_ref<uint32_t>(reinterpret_cast<uint32_t*>(
      mapping_->bytes().data() + kMetaHeaderSize)[2 * slab + field]);
}

}  // namespace weightfs

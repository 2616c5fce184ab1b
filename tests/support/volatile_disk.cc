#include "tests/support/volatile_disk.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <optional>
#include <sstream>

namespace weightfs {
namespace {

struct Place {
  uint64_t inode;
  uint64_t offset;
};

// Which byte of which file is mapped at an address.
std::optional<Place> MappedAt(const void* address) {
  const auto wanted = reinterpret_cast<uintptr_t>(address);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    // "begin-end rwxp offset major:minor inode path"
    std::istringstream words(line);
    Place place{};
    uint64_t begin = 0;
    uint64_t end = 0;
    std::string skipped;
    words >> std::hex >> begin;
    words.ignore(1);
    words >> end;
    if (wanted < begin || wanted >= end) continue;
    words >> skipped >> place.offset >> skipped >> std::dec >> place.inode;
    place.offset += wanted - begin;
    return place;
  }
  return std::nullopt;
}

}  // namespace

VolatileDisk::File* VolatileDisk::Find(uint64_t inode) {
  for (const auto& file : files_) {
    if (file->inode == inode) return file.get();
  }
  return nullptr;
}

VolatileDisk::File* VolatileDisk::Find(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 ? Find(status.st_ino) : nullptr;
}

VolatileDisk::File& VolatileDisk::Follow(int fd) {
  struct stat status {};
  ::fstat(fd, &status);
  if (File* file = Find(status.st_ino)) return *file;
  files_.push_back(std::make_unique<File>());
  File& file = *files_.back();
  file.inode = status.st_ino;
  file.fd = UniqueFd(
      ::open(fmt::format("/proc/self/fd/{}", fd).c_str(), O_RDWR | O_CLOEXEC));
  return file;
}

void VolatileDisk::Remember(File& file, uint64_t offset, uint64_t length) {
  const uint64_t end = offset + length;
  for (uint64_t at = offset / kPage * kPage; at < end;) {
    std::vector<std::byte> bytes(std::min<uint64_t>(32 * kPage, end - at));
    bytes.resize((bytes.size() + kPage - 1) / kPage * kPage);
    const ssize_t got = ::pread(file.fd.get(), bytes.data(), bytes.size(),
                                static_cast<off_t>(at));
    if (got <= 0) return;
    for (uint64_t i = 0; i < static_cast<uint64_t>(got); i += kPage) {
      const auto size = std::min(kPage, static_cast<uint64_t>(got) - i);
      const auto from = bytes.begin() + static_cast<ptrdiff_t>(i);
      file.durable.try_emplace((at + i) / kPage, from,
                               from + static_cast<ptrdiff_t>(size));
    }
    at += static_cast<uint64_t>(got);
  }
}

void VolatileDisk::LoseOf(File& file, const Chooses& lost) {
  for (const auto& [page, bytes] : file.durable) {
    if (!lost(page)) continue;
    // What fails here was truncated meanwhile.
    static_cast<void>(::pwrite(file.fd.get(), bytes.data(), bytes.size(),
                               static_cast<off_t>(page * kPage)));
  }
}

void VolatileDisk::Lose(const std::string& path, const Chooses& lost) {
  MutexLock lock(mutex_);
  if (File* file = Find(path)) LoseOf(*file, lost);
}

void VolatileDisk::WriteBack(const std::string& path, const Chooses& written) {
  MutexLock lock(mutex_);
  File* file = Find(path);
  if (file == nullptr) return;
  for (auto& [page, bytes] : file->durable) {
    if (!written(page)) continue;
    static_cast<void>(::pread(file->fd.get(), bytes.data(), bytes.size(),
                              static_cast<off_t>(page * kPage)));
  }
}

void VolatileDisk::LoseAll(const Chooses& lost) {
  MutexLock lock(mutex_);
  std::erase_if(files_, [](const auto& file) {
    struct stat status {};
    return ::fstat(file->fd.get(), &status) != 0 || status.st_nlink == 0;
  });
  for (const auto& file : files_) LoseOf(*file, lost);
}

void VolatileDisk::Forget() {
  MutexLock lock(mutex_);
  files_.clear();
}

ssize_t VolatileDisk::Read(int fd, std::span<std::byte> out, uint64_t offset) {
  return disk_.Read(fd, out, offset);
}

ssize_t VolatileDisk::ReadNowait(int fd, std::span<std::byte> out,
                                 uint64_t offset) {
  return disk_.ReadNowait(fd, out, offset);
}

ssize_t VolatileDisk::Write(int fd, std::span<const std::byte> bytes,
                            uint64_t offset) {
  {
    MutexLock lock(mutex_);
    Remember(Follow(fd), offset, bytes.size());
  }
  return disk_.Write(fd, bytes, offset);
}

int VolatileDisk::Sync(int fd) {
  MutexLock lock(mutex_);
  Follow(fd).durable.clear();
  return 0;
}

int VolatileDisk::Allocate(int fd, uint64_t offset, uint64_t length) {
  const int result = disk_.Allocate(fd, offset, length);
  // A mapping may store to it without a word.
  MutexLock lock(mutex_);
  if (result == 0) Remember(Follow(fd), offset, length);
  return result;
}

int VolatileDisk::Punch(int fd, uint64_t offset, uint64_t length) {
  {
    MutexLock lock(mutex_);
    File& file = Follow(fd);
    const auto end = static_cast<off_t>(offset + length);
    for (auto at = static_cast<off_t>(offset); at < end;) {
      const off_t data = ::lseek(file.fd.get(), at, SEEK_DATA);
      if (data < 0 || data >= end) break;
      const off_t hole = std::min(::lseek(file.fd.get(), data, SEEK_HOLE), end);
      Remember(file, static_cast<uint64_t>(data),
               static_cast<uint64_t>(hole - data));
      at = hole;
    }
  }
  return disk_.Punch(fd, offset, length);
}

int VolatileDisk::SyncMapping(std::span<std::byte> bytes) {
  const auto mapped = MappedAt(bytes.data());
  if (!mapped) return -EINVAL;
  MutexLock lock(mutex_);
  File* file = Find(mapped->inode);
  if (file == nullptr) return 0;  // not followed: all of it is durable
  const uint64_t skip = mapped->offset % kPage;
  for (uint64_t at = mapped->offset - skip; at < mapped->offset + bytes.size();
       at += kPage) {
    // The whole page is mapped, since mappings begin and end with one.
    const std::byte* page = bytes.data() - skip + (at + skip - mapped->offset);
    file->durable[at / kPage].assign(page, page + kPage);
  }
  return 0;
}

int VolatileDisk::WritebackError(int fd) { return disk_.WritebackError(fd); }

}  // namespace weightfs

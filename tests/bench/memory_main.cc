// weightfs-bench-memory MOUNTPOINT READ_AHEAD_KB FILE…: serves the files, flat,
// by their last names, from memory of its own: as little as a FUSE file system
// can do, with the kernel's settings as weightfs has them. What it reaches is
// what FUSE can reach here. FILE may be NAME=FILE:OFFSET:LENGTH: a part of one.
// Prints "serves" once it does; ends when it is unmounted or gets SIGTERM.

#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "fs/fuse/handlers.h"
#include "fs/fuse/kernel_settings.h"
#include "tests/bench/job.h"

namespace weightfs {
namespace {

constexpr double kForever = 86400;  // seconds

struct Served {
  std::string name;
  std::span<std::byte> bytes;
};

struct Server {
  std::vector<TouchedMemory> memory;
  std::vector<Served> files;  // node id 2 is the first
  std::promise<void> started;
};

const Served* FileOf(fuse_req_t req, fuse_ino_t node) {
  const auto& files = static_cast<Server*>(fuse_req_userdata(req))->files;
  return node >= 2 && node - 2 < files.size() ? &files[node - 2] : nullptr;
}

struct stat Attributes(fuse_ino_t node, const Served* file) {
  struct stat status {};
  status.st_ino = node;
  status.st_uid = ::getuid();
  status.st_gid = ::getgid();
  status.st_nlink = 1;
  status.st_mode = file == nullptr ? S_IFDIR | 0555 : S_IFREG | 0444;
  if (file != nullptr) {
    status.st_size = static_cast<off_t>(file->bytes.size());
    status.st_blocks = (status.st_size + 511) / 512;
    status.st_blksize = kMaxRequest;
  }
  return status;
}

void OnInit(void* user, fuse_conn_info* connection) {
  connection->max_write = kMaxRequest;
  connection->max_background = kMaxBackground;
  connection->congestion_threshold = kMaxBackground * 3 / 4;
  connection->want &= ~static_cast<unsigned>(FUSE_CAP_AUTO_INVAL_DATA);
  static_cast<Server*>(user)->started.set_value();
}

void OnLookup(fuse_req_t req, fuse_ino_t /*parent*/, const char* name) {
  const auto& files = static_cast<Server*>(fuse_req_userdata(req))->files;
  for (size_t i = 0; i < files.size(); ++i) {
    if (files[i].name != name) continue;
    fuse_entry_param entry;
    std::memset(&entry, 0, sizeof entry);
    entry.ino = i + 2;
    entry.attr = Attributes(entry.ino, &files[i]);
    entry.attr_timeout = kForever;
    entry.entry_timeout = kForever;
    fuse_reply_entry(req, &entry);
    return;
  }
  fuse_reply_err(req, ENOENT);
}

void OnGetAttr(fuse_req_t req, fuse_ino_t node, fuse_file_info* /*info*/) {
  const struct stat status = Attributes(node, FileOf(req, node));
  fuse_reply_attr(req, &status, kForever);
}

void OnOpen(fuse_req_t req, fuse_ino_t node, fuse_file_info* info) {
  if (FileOf(req, node) == nullptr) {
    fuse_reply_err(req, EISDIR);
    return;
  }
  info->keep_cache = 1;
  fuse_reply_open(req, info);
}

void OnRead(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset,
            fuse_file_info* /*info*/) {
  const std::span<std::byte> bytes = FileOf(req, node)->bytes;
  const size_t at = std::min(static_cast<size_t>(offset), bytes.size());
  const size_t length = std::min(size, bytes.size() - at);
  fuse_reply_buf(req, reinterpret_cast<const char*>(bytes.data() + at), length);
}

fuse_lowlevel_ops Operations() {
  fuse_lowlevel_ops operations;
  std::memset(&operations, 0, sizeof operations);
  operations.init = OnInit;
  operations.lookup = OnLookup;
  operations.getattr = OnGetAttr;
  operations.open = OnOpen;
  operations.read = OnRead;
  return operations;
}

std::optional<uint64_t> Number(std::string_view text) {
  uint64_t value = 0;
  const auto [rest, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || rest != text.data() + text.size()) return {};
  return value;
}

// FILE, or NAME=FILE:OFFSET:LENGTH.
Result<> AddFile(std::string text, Server& server) {
  std::string name = text.substr(text.rfind('/') + 1);
  std::optional<uint64_t> offset;
  std::optional<uint64_t> length;
  if (const size_t equals = text.find('='); equals != std::string::npos) {
    const size_t second = text.rfind(':');
    const size_t first = text.rfind(':', second - 1);
    if (second == std::string::npos || first == std::string::npos) {
      return MakeError(Code::kInvalid, "{}: no NAME=FILE:OFFSET:LENGTH", text);
    }
    length = Number(std::string_view(text).substr(second + 1));
    offset =
        Number(std::string_view(text).substr(first + 1, second - first - 1));
    name = text.substr(0, equals);
    text = text.substr(equals + 1, first - equals - 1);
  }
  ASSIGN_OR_RETURN(const auto file, MappedFile::Open(text));
  const size_t size = file.bytes().size();
  const uint64_t begin = std::min(offset.value_or(0), uint64_t{size});
  const auto part = file.bytes().subspan(
      begin, std::min(length.value_or(size), uint64_t{size - begin}));
  ASSIGN_OR_RETURN(auto memory, TouchedMemory::Make(part.size()));
  std::memcpy(memory.bytes().data(), part.data(), part.size());
  server.files.push_back({std::move(name), memory.bytes()});
  server.memory.push_back(std::move(memory));
  return {};
}

int Serve(const std::string& mountpoint, uint32_t read_ahead_kb,
          Server& server) {
  std::string program = "weightfs-bench-memory";
  std::string flag = "-o";
  std::string options = "ro,nosuid,nodev,fsname=bench,default_permissions";
  char* argv[] = {program.data(), flag.data(), options.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(3, argv);
  const fuse_lowlevel_ops operations = Operations();
  fuse_session* const session =
      fuse_session_new(&args, &operations, sizeof operations, &server);
  fuse_opt_free_args(&args);
  if (session == nullptr || fuse_set_signal_handlers(session) != 0 ||
      fuse_session_mount(session, mountpoint.c_str()) != 0) {
    return 1;
  }
  const std::jthread announcer([&] {
    server.started.get_future().wait();
    RaiseReadAhead(DeviceOfMount(mountpoint), kMaxBackground, read_ahead_kb);
    std::puts("serves");
    std::fflush(stdout);
  });
  fuse_loop_config* const config = fuse_loop_cfg_create();
  const int result = fuse_session_loop_mt(session, config);
  fuse_loop_cfg_destroy(config);
  fuse_session_unmount(session);
  fuse_remove_signal_handlers(session);
  fuse_session_destroy(session);
  return result < 0 ? 1 : 0;
}

}  // namespace
}  // namespace weightfs

// NOLINTNEXTLINE(bugprone-exception-escape): a test program may end so
int main(int argc, char** argv) {
  const auto read_ahead = argc < 4 ? std::nullopt : weightfs::Number(argv[2]);
  if (!read_ahead) {
    std::fprintf(stderr, "usage: %s MOUNTPOINT READ_AHEAD_KB FILE...\n",
                 argv[0]);
    return 2;
  }
  weightfs::Server server;
  for (int i = 3; i < argc; ++i) {
    if (const auto added = weightfs::AddFile(argv[i], server); !added) {
      std::fprintf(stderr, "%s\n", added.error().ToString().c_str());
      return 1;
    }
  }
  return weightfs::Serve(argv[1], static_cast<uint32_t>(*read_ahead), server);
}

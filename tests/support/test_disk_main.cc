// weightfs-test-disk FOLDER MOUNTPOINT SWITCH: shows FOLDER at MOUNTPOINT, over
// FUSE, as a disk that can stop answering: as long as the file SWITCH exists,
// the operations that it names (one word each, or "all") block. Ends when it is
// unmounted, or when standard input is closed; then what blocks gets an error.

#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <fcntl.h>
#include <fuse.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

namespace {

struct Disk {
  std::string folder;
  std::string blocked;  // the file that says what blocks
};

Disk& TheDisk() {
  return *static_cast<Disk*>(fuse_get_context()->private_data);
}
std::string At(const char* path) { return TheDisk().folder + path; }

bool Blocks(const std::string& file, const std::string& operation) {
  std::ifstream text(file);
  for (std::string word; text >> word;) {
    if (word == "all" || word == operation) return true;
  }
  return false;
}

// Comes back once the operation is let through.
void Pass(const char* operation) {
  const Disk& disk = TheDisk();
  while (Blocks(disk.blocked, operation)) ::poll(nullptr, 0, 20);
}

int Answer(long result) {
  return result < 0 ? -errno : static_cast<int>(result);
}

int GetAttr(const char* path, struct stat* attr, fuse_file_info* file) {
  Pass("getattr");
  if (file != nullptr) return Answer(::fstat(static_cast<int>(file->fh), attr));
  return Answer(::lstat(At(path).c_str(), attr));
}

int ReadDir(const char* path, void* buffer, fuse_fill_dir_t fill, off_t,
            fuse_file_info*, fuse_readdir_flags) {
  Pass("readdir");
  DIR* folder = ::opendir(At(path).c_str());
  if (folder == nullptr) return -errno;
  // NOLINTNEXTLINE(concurrency-mt-unsafe): a stream of this call's own
  while (const dirent* entry = ::readdir(folder)) {
    fill(buffer, entry->d_name, nullptr, 0, fuse_fill_dir_flags{});
  }
  ::closedir(folder);
  return 0;
}

int MakeFolder(const char* path, mode_t mode) {
  Pass("mkdir");
  return Answer(::mkdir(At(path).c_str(), mode));
}
int Unlink(const char* path) {
  Pass("unlink");
  return Answer(::unlink(At(path).c_str()));
}
int RemoveFolder(const char* path) {
  Pass("rmdir");
  return Answer(::rmdir(At(path).c_str()));
}
int Rename(const char* from, const char* to, unsigned flags) {
  Pass("rename");
  return Answer(
      ::renameat2(AT_FDCWD, At(from).c_str(), AT_FDCWD, At(to).c_str(), flags));
}
int Truncate(const char* path, off_t size, fuse_file_info* file) {
  Pass("truncate");
  if (file != nullptr) {
    return Answer(::ftruncate(static_cast<int>(file->fh), size));
  }
  return Answer(::truncate(At(path).c_str(), size));
}
int SetTimes(const char* path, const timespec times[2], fuse_file_info*) {
  Pass("utimens");
  return Answer(
      ::utimensat(AT_FDCWD, At(path).c_str(), times, AT_SYMLINK_NOFOLLOW));
}
int ChangeMode(const char* path, mode_t mode, fuse_file_info*) {
  Pass("chmod");
  return Answer(::chmod(At(path).c_str(), mode));
}

int Open(const char* path, fuse_file_info* file) {
  Pass("open");
  const int fd = ::open(At(path).c_str(), file->flags | O_CLOEXEC);
  if (fd < 0) return -errno;
  file->fh = static_cast<uint64_t>(fd);
  return 0;
}
int Create(const char* path, mode_t mode, fuse_file_info* file) {
  Pass("create");
  const int fd = ::open(At(path).c_str(), file->flags | O_CLOEXEC, mode);
  if (fd < 0) return -errno;
  file->fh = static_cast<uint64_t>(fd);
  return 0;
}
int Read(const char*, char* out, size_t size, off_t offset,
         fuse_file_info* file) {
  Pass("read");
  return Answer(::pread(static_cast<int>(file->fh), out, size, offset));
}
int Write(const char*, const char* bytes, size_t size, off_t offset,
          fuse_file_info* file) {
  Pass("write");
  return Answer(::pwrite(static_cast<int>(file->fh), bytes, size, offset));
}
int Sync(const char*, int, fuse_file_info* file) {
  Pass("fsync");
  return Answer(::fsync(static_cast<int>(file->fh)));
}
int Allocate(const char*, int mode, off_t offset, off_t length,
             fuse_file_info* file) {
  Pass("fallocate");
  return Answer(::fallocate(static_cast<int>(file->fh), mode, offset, length));
}
int Flush(const char*, fuse_file_info*) {
  Pass("flush");
  return 0;
}
int Release(const char*, fuse_file_info* file) {
  ::close(static_cast<int>(file->fh));
  return 0;
}
int StatFs(const char* path, struct statvfs* result) {
  Pass("statfs");
  return Answer(::statvfs(At(path).c_str(), result));
}

void* Init(fuse_conn_info*, fuse_config* config) {
  config->use_ino = 1;
  config->nullpath_ok = 0;
  // As a network's file system: nothing is believed for long.
  config->attr_timeout = 0;
  config->entry_timeout = 0;
  config->negative_timeout = 0;
  return fuse_get_context()->private_data;
}

fuse_operations Operations() {
  fuse_operations operations;
  std::memset(&operations, 0, sizeof(operations));
  operations.init = Init;
  operations.getattr = GetAttr;
  operations.readdir = ReadDir;
  operations.mkdir = MakeFolder;
  operations.unlink = Unlink;
  operations.rmdir = RemoveFolder;
  operations.rename = Rename;
  operations.truncate = Truncate;
  operations.utimens = SetTimes;
  operations.chmod = ChangeMode;
  operations.open = Open;
  operations.create = Create;
  operations.read = Read;
  operations.write = Write;
  operations.fsync = Sync;
  operations.fallocate = Allocate;
  operations.flush = Flush;
  operations.release = Release;
  operations.statfs = StatFs;
  return operations;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s FOLDER MOUNTPOINT SWITCH\n", argv[0]);
    return 2;
  }
  Disk disk{argv[1], argv[3]};
  const fuse_operations operations = Operations();
  std::string program = argv[0];
  char* arguments[] = {program.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(1, arguments);
  fuse* session = fuse_new(&args, &operations, sizeof(operations), &disk);
  if (session == nullptr || fuse_mount(session, argv[2]) != 0) return 1;
  std::puts("serves");
  std::fflush(stdout);
  // Threads that block in operations cannot be joined: the end of this process
  // ends them and the connection.
  const std::jthread end([] {
    char byte = 0;
    while (::read(STDIN_FILENO, &byte, 1) > 0) {
    }
    std::_Exit(0);
  });
  fuse_loop_config* config = fuse_loop_cfg_create();
  fuse_loop_cfg_set_max_threads(config, 200);
  fuse_loop_mt(session, config);
  std::_Exit(0);
}

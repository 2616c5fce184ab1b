#include "cache/hub/hub_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>

#include "cache/http/http_fields.h"

namespace weightfs {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxKeys = 4096;  // of one object that is looked at

// One JSON value as the answer's readers see it. Strings are only set for
// strings, numbers only for integers that are not negative.
struct Scalar {
  enum class Kind { kString, kUnsigned, kBool, kOther };
  Kind kind = Kind::kOther;
  std::string* text = nullptr;
  uint64_t number = 0;
  bool truth = false;
};

// Walks JSON by events and keeps only where it is: a stack of keys. Objects
// less than `checked_depth` deep must not repeat a key.
class Walker : public nlohmann::json_sax<json> {
 public:
  explicit Walker(size_t checked_depth) : checked_depth_(checked_depth) {}

  // What the answer's reader does. False stops; it has called Refuse.
  virtual bool OnScalar(const Scalar& scalar) = 0;
  virtual bool OnObjectBegin() { return true; }
  virtual bool OnObjectEnd() { return true; }
  virtual bool OnArrayBegin() { return true; }

  bool null() final { return Value({}); }
  bool boolean(bool value) final {
    return Value({Scalar::Kind::kBool, nullptr, 0, value});
  }
  bool number_integer(number_integer_t /*value*/) final { return Value({}); }
  bool number_unsigned(number_unsigned_t value) final {
    return Value({Scalar::Kind::kUnsigned, nullptr, value, false});
  }
  bool number_float(number_float_t /*value*/, const string_t& /*text*/) final {
    return Value({});
  }
  bool string(string_t& value) final {
    return Value({Scalar::Kind::kString, &value, 0, false});
  }
  bool binary(binary_t& /*value*/) final { return Refuse("binary data"); }
  bool start_object(std::size_t /*size*/) final {
    if (!Push(true)) return false;
    return OnObjectBegin();
  }
  bool key(string_t& value) final {
    Frame& frame = frames_.back();
    if (frames_.size() <= checked_depth_) {
      if (frame.seen.size() >= kMaxKeys) return Refuse("too many keys");
      if (!frame.seen.insert(value).second) {
        return Refuse("the key \"" + PrintableText(value) + "\" twice");
      }
    }
    frame.key = std::move(value);
    return true;
  }
  bool end_object() final {
    if (!OnObjectEnd()) return false;
    frames_.pop_back();
    return true;
  }
  bool start_array(std::size_t /*size*/) final {
    if (!Push(false)) return false;
    return OnArrayBegin();
  }
  bool end_array() final {
    frames_.pop_back();
    return true;
  }
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*error*/) final {
    return Refuse("not JSON at byte " + std::to_string(position));
  }

  // Why the walk stopped, if it did.
  const std::string& refusal() const { return refusal_; }

 protected:
  bool Refuse(std::string why) {
    if (refusal_.empty()) refusal_ = std::move(why);
    return false;
  }
  size_t depth() const { return frames_.size(); }  // containers around
  bool InObject() const { return !frames_.empty() && frames_.back().object; }
  // The key under which the container at `level` (0 is the outermost) holds
  // what is being walked; empty in an array.
  const std::string& KeyAt(size_t level) const { return frames_[level].key; }

 private:
  struct Frame {
    bool object = false;
    std::string key;
    std::unordered_set<std::string> seen;
  };

  bool Push(bool object) {
    if (frames_.size() >= kMaxDepth) return Refuse("nested too deep");
    frames_.push_back(Frame{object, {}, {}});
    return true;
  }
  bool Value(const Scalar& scalar) { return OnScalar(scalar); }

  const size_t checked_depth_;
  std::vector<Frame> frames_;
  std::string refusal_;
};

Result<> Walk(std::string_view text, Walker& walker, std::string_view what) {
  if (text.size() > kMaxHubAnswerBytes) {
    return MakeError(Code::kCorrupt, "{}: over {} bytes", what,
                     kMaxHubAnswerBytes);
  }
  if (json::sax_parse(text.begin(), text.end(), &walker)) return {};
  return MakeError(Code::kCorrupt, "{}: {}", what, walker.refusal());
}

class InfoWalker final : public Walker {
 public:
  InfoWalker() : Walker(1) {}

  bool OnScalar(const Scalar& scalar) override {
    if (depth() == 0) return Refuse("not an object");
    if (depth() != 1 || !InObject()) return true;
    const std::string& key = KeyAt(0);
    if (key == "sha") return TakeCommit(scalar);
    if (key == "id" && scalar.kind == Scalar::Kind::kString) {
      info.id = std::move(*scalar.text);
    }
    if (key == "private") return TakeFlag(scalar, info.is_private);
    if (key == "disabled") return TakeFlag(scalar, info.disabled);
    // false, "auto" or "manual"; what is none of them counts as gated.
    if (key == "gated") {
      info.gated = !(scalar.kind == Scalar::Kind::kBool && !scalar.truth);
    }
    return true;
  }
  bool OnArrayBegin() override {
    return depth() > 1 || Refuse("not an object");
  }

  HubRepoInfo info;

 private:
  bool TakeCommit(const Scalar& scalar) {
    if (scalar.kind != Scalar::Kind::kString || !IsHexId(*scalar.text, 40)) {
      return Refuse("\"sha\" is not a commit of 40 hex digits");
    }
    info.commit = std::move(*scalar.text);
    return true;
  }
  bool TakeFlag(const Scalar& scalar, bool& flag) {
    if (scalar.kind != Scalar::Kind::kBool) {
      return Refuse("\"" + KeyAt(0) + "\" is not a boolean");
    }
    flag = scalar.truth;
    return true;
  }
};

class TreeWalker final : public Walker {
 public:
  explicit TreeWalker(std::vector<FileInfo>& files)
      : Walker(3), files_(files) {}

  bool OnArrayBegin() override {
    return depth() != 2 || Refuse("an array where an entry should be");
  }
  bool OnObjectBegin() override {
    if (depth() == 1) return Refuse("not an array");
    if (depth() == 2) item_ = Item();
    if (depth() == 3 && KeyAt(1) == "lfs") item_.has_lfs = true;
    return true;
  }
  bool OnScalar(const Scalar& scalar) override {
    if (depth() <= 1) return Refuse("an entry that is not an object");
    if (depth() == 2 && InObject()) return TakeField(scalar);
    if (depth() == 3 && InObject() && KeyAt(1) == "lfs") {
      return TakeLfsField(scalar);
    }
    return true;
  }
  bool OnObjectEnd() override { return depth() != 2 || FinishItem(); }

 private:
  struct Item {
    std::string type;
    std::string path;
    std::string oid;
    std::optional<uint64_t> size;
    bool has_lfs = false;
    std::string lfs_oid;
    std::optional<uint64_t> lfs_size;
  };

  bool TakeField(const Scalar& scalar) {
    const std::string& key = KeyAt(1);
    if (key == "type") return TakeText(scalar, item_.type);
    if (key == "path") return TakeText(scalar, item_.path);
    if (key == "oid") return TakeText(scalar, item_.oid);
    if (key == "size") return TakeSize(scalar, item_.size);
    return true;
  }
  bool TakeLfsField(const Scalar& scalar) {
    const std::string& key = KeyAt(2);
    if (key == "oid") return TakeText(scalar, item_.lfs_oid);
    if (key == "size") return TakeSize(scalar, item_.lfs_size);
    return true;
  }
  bool TakeText(const Scalar& scalar, std::string& field) {
    if (scalar.kind != Scalar::Kind::kString) {
      return Refuse("a field that is not a string" + Where());
    }
    field = std::move(*scalar.text);
    return true;
  }
  bool TakeSize(const Scalar& scalar, std::optional<uint64_t>& size) {
    // Offsets are signed in the kernel's interfaces.
    if (scalar.kind != Scalar::Kind::kUnsigned ||
        scalar.number > static_cast<uint64_t>(INT64_MAX)) {
      return Refuse("a size that is not one" + Where());
    }
    size = scalar.number;
    return true;
  }

  bool FinishItem() {
    if (item_.type.empty()) return Refuse("an entry without a type" + Where());
    // Folders, and what has no bytes of its own (a submodule).
    if (item_.type != "file") return true;
    if (!IsSafePath(item_.path) || item_.path.size() > kMaxHubPath) {
      return Refuse("a path not to be used" + Where());
    }
    if (files_.size() >= kMaxHubFiles) return Refuse("too many files");
    FileInfo file;
    file.path = std::move(item_.path);
    const auto size = item_.has_lfs ? item_.lfs_size : item_.size;
    std::string& oid = item_.has_lfs ? item_.lfs_oid : item_.oid;
    if (!size) return Refuse("no size for " + PrintableText(file.path));
    if (!IsHexId(oid, item_.has_lfs ? 64 : 40)) {
      return Refuse("no id for " + PrintableText(file.path));
    }
    file.size = *size;
    file.id.kind =
        item_.has_lfs ? ContentId::Kind::kSha256 : ContentId::Kind::kGit;
    file.id.value = std::move(oid);
    files_.push_back(std::move(file));
    return true;
  }
  std::string Where() const {
    return item_.path.empty() ? "" : ": " + PrintableText(item_.path);
  }

  std::vector<FileInfo>& files_;
  Item item_;
};

class ErrorWalker final : public Walker {
 public:
  ErrorWalker() : Walker(0) {}
  bool OnScalar(const Scalar& scalar) override {
    if (depth() == 1 && InObject() && KeyAt(0) == "error" &&
        scalar.kind == Scalar::Kind::kString) {
      message = *scalar.text;
    }
    return true;
  }
  std::string message;
};

// Of the paths of the folders that hold `path` and do not hold `before`, its
// predecessor in order.
size_t NewFolderBytes(std::string_view before, std::string_view path) {
  const size_t shared = static_cast<size_t>(
      std::mismatch(before.begin(), before.end(), path.begin(), path.end())
          .second -
      path.begin());
  size_t bytes = 0;
  for (size_t slash = path.find('/', shared); slash != std::string_view::npos;
       slash = path.find('/', slash + 1)) {
    bytes += slash;
  }
  return bytes;
}

}  // namespace

bool IsHexId(std::string_view text, size_t digits) {
  return text.size() == digits &&
         std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

Result<HubRepoInfo> ParseHubRepoInfo(std::string_view text) {
  InfoWalker walker;
  RETURN_IF_ERROR(Walk(text, walker, "the Hub's answer about the repository"));
  if (walker.info.commit.empty()) {
    return Error(Code::kCorrupt,
                 "the Hub's answer about the repository: no \"sha\"");
  }
  return std::move(walker.info);
}

Result<> ParseHubTreePage(std::string_view text, std::vector<FileInfo>& files) {
  TreeWalker walker(files);
  return Walk(text, walker, "the Hub's list of files");
}

Result<> FinishHubListing(std::vector<FileInfo>& files) {
  std::sort(
      files.begin(), files.end(),
      [](const FileInfo& a, const FileInfo& b) { return a.path < b.path; });
  size_t folder_bytes = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    folder_bytes +=
        NewFolderBytes(i == 0 ? "" : files[i - 1].path, files[i].path);
  }
  if (folder_bytes > kMaxHubFolderBytes) {
    return Error(Code::kCorrupt, "the Hub's list of files: too many folders");
  }
  std::unordered_set<std::string_view> paths;
  paths.reserve(files.size());
  for (const FileInfo& file : files) {
    if (!paths.insert(file.path).second) {
      return MakeError(Code::kCorrupt, "the Hub's list of files: {} twice",
                       PrintableText(file.path));
    }
  }
  for (const FileInfo& file : files) {
    const std::string_view path = file.path;
    for (size_t slash = path.find('/'); slash != std::string_view::npos;
         slash = path.find('/', slash + 1)) {
      if (paths.count(path.substr(0, slash)) == 0) continue;
      return MakeError(Code::kCorrupt,
                       "the Hub's list of files: {} is a file and a folder",
                       PrintableText(path.substr(0, slash)));
    }
  }
  return {};
}

std::string ParseHubErrorMessage(std::string_view text,
                                 std::string_view secret) {
  if (text.size() > kMaxHubAnswerBytes) return "";
  ErrorWalker walker;
  if (!json::sax_parse(text.begin(), text.end(), &walker)) return "";
  return PrintableText(walker.message, secret);
}

}  // namespace weightfs

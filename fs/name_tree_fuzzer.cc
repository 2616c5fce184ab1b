// Fuzzes name_tree.h and path_name.h: each line is a tensor's name. Whatever
// the bytes: no crash; names come back from their components; every tensor is
// found at the path that shows it and nothing is found twice; no component is
// one that a folder cannot hold.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "formats/text.h"
#include "formats/view/path_name.h"
#include "fs/name_tree.h"

namespace {

using namespace weightfs;  // NOLINT(google-build-using-namespace): a program

constexpr size_t kMaxNames = 16;

void Require(bool condition) {
  if (!condition) std::abort();
}

void CheckComponent(std::string_view component) {
  Require(!component.empty() && component != "." && component != "..");
  Require(IsUtf8(component));
  for (const char c : component) {
    Require(c != '/' && c != 0x7f && static_cast<unsigned char>(c) >= 0x20);
  }
}

void CheckEscaping(const std::string& name) {
  const auto components = EscapeName(name);
  for (const std::string& component : components) CheckComponent(component);
  Require(UnescapeName(components) == name);
  // The name taken as a component: what it stands for is shown by it alone.
  const auto meant = UnescapeName({name});
  Require(!meant || EscapeName(*meant) == std::vector<std::string>{name});
}

// The tensor that a path names; nothing if it is none.
std::optional<uint32_t> Resolve(const NameTree& tree, std::string_view path,
                                Format format) {
  uint32_t folder = 0;
  while (true) {
    const size_t slash = path.find('/');
    const std::string_view component = path.substr(0, slash);
    CheckComponent(component);
    Require(component.size() <= kMaxComponent);
    if (slash == std::string_view::npos) {
      // Else the folder would hide it.
      Require(!tree.FindFolder(folder, component));
      return tree.FindTensor(folder, component, format);
    }
    const auto next = tree.FindFolder(folder, component);
    if (!next) return std::nullopt;
    folder = *next;
    path.remove_prefix(slash + 1);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::string> names(1);
  for (size_t i = 0; i < size; ++i) {
    if (data[i] != '\n') {
      names.back() += static_cast<char>(data[i]);
    } else if (names.size() < kMaxNames) {
      names.emplace_back();
    }
  }
  for (const std::string& name : names) CheckEscaping(name);
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());

  std::vector<TensorInfo> tensors;
  for (const std::string& name : names) {
    TensorInfo tensor;
    tensor.name = name;
    tensor.order = tensors.size();
    tensors.push_back(std::move(tensor));
  }
  const auto index = TensorIndex::Create({"file"}, std::move(tensors), {});
  Require(index.has_value());
  const NameTree tree(*index, {"npy", "a.bin"});
  for (const Format format : AllFormats()) {
    std::set<std::string> paths;
    for (uint32_t i = 0; i < index->tensors().size(); ++i) {
      const std::string path = tree.FilePath(i, format);
      Require(paths.insert(path).second);
      Require(Resolve(tree, path, format) == i);
      Require(path != "npy" && path != "a.bin");
    }
  }
  return 0;
}

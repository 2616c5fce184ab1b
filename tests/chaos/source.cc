#include "tests/chaos/source.h"

#include <algorithm>
#include <utility>

#include "formats/base/byte_source.h"
#include "formats/safetensors.h"
#include "formats/tensor_index.h"
#include "formats/view/path_name.h"
#include "formats/writer.h"

namespace weightfs {
namespace {

// What a format puts around the tensor, at most.
constexpr uint64_t kMaxFrame = 64 << 10;

class ContentSource final : public ByteSource {
 public:
  ContentSource(std::string name, TestHubContentPtr content)
      : name_(std::move(name)), content_(std::move(content)) {}
  uint64_t size() const override { return content_->size(); }
  const std::string& name() const override { return name_; }
  Result<> ReadAt(uint64_t offset, std::span<std::byte> out) override {
    if (offset > size() || out.size() > size() - offset ||
        !content_->Read(offset, out)) {
      return MakeError(Code::kInvalid, "{}: no bytes {}+{}", name_, offset,
                       out.size());
    }
    return {};
  }

 private:
  const std::string name_;
  const TestHubContentPtr content_;
};

}  // namespace

Result<ChaosSource> ChaosSource::Make(const std::string& spec_text) {
  ASSIGN_OR_RETURN(const TestHubModelSpec spec,
                   ParseTestHubModelSpec(spec_text));
  ASSIGN_OR_RETURN(const auto model, MakeTestHubModel(spec));
  ChaosSource source;
  for (const TestHubFile& file : model) {
    source.files_.push_back(
        {"repo/" + file.path, file.content->size(), file.content, {}});
    source.contents_.push_back(file.content);
  }
  RETURN_IF_ERROR(source.AddTensors(spec));
  return source;
}

Result<> ChaosSource::AddTensors(const TestHubModelSpec& spec) {
  uint64_t shard = 0;
  for (uint32_t object = 0; object < contents_.size(); ++object) {
    const File file = files_[object];
    if (!file.path.ends_with(".safetensors")) continue;
    ContentSource bytes(file.path, contents_[object]);
    ASSIGN_OR_RETURN(const TensorIndex index, ReadSafetensors(bytes));
    const uint64_t data =
        file.size - index.tensors().size() * spec.tensor_bytes;
    for (TensorInfo tensor : index.tensors()) {
      const uint64_t begin = tensor.data.front().offset - data;
      for (SourceRange& range : tensor.data) range.object = object;
      for (const Format format : AllFormats()) {
        if (!CheckFormatHolds(format, tensor.dtype).has_value()) continue;
        ASSIGN_OR_RETURN(auto segments, WriteTensor(format, tensor));
        ASSIGN_OR_RETURN(auto made, VirtualFile::Create(std::move(segments)));
        std::string path = "tensors/" + std::string(FormatName(format));
        for (const std::string& part : EscapeName(tensor.name)) {
          path += "/" + part;
        }
        path += FormatExtension(format);
        const uint64_t size = made.size();
        files_.push_back({std::move(path), size, nullptr, std::move(made)});
        RETURN_IF_ERROR(CheckTensor(files_.back(), spec.tensor_bytes,
                                    spec.seed + shard, begin));
      }
    }
    ++shard;
  }
  return {};
}

// The formats' code made these bytes, here and in the daemon; so that it is not
// compared with itself alone, the tensor's first and last bytes are looked for.
Result<> ChaosSource::CheckTensor(const File& file, uint64_t bytes,
                                  uint64_t seed, uint64_t data_offset) const {
  const uint64_t probe = std::min<uint64_t>(bytes, 4096);
  std::vector<std::byte> first(probe);
  std::vector<std::byte> last(probe);
  FillPattern(seed, data_offset, first);
  FillPattern(seed, data_offset + bytes - probe, last);
  std::vector<std::byte> head(std::min(file.size, probe + kMaxFrame));
  Read(file, 0, head);
  const auto at =
      std::search(head.begin(), head.end(), first.begin(), first.end());
  const auto begin = static_cast<uint64_t>(at - head.begin());
  std::vector<std::byte> tail(probe);
  if (at == head.end() || begin + bytes > file.size) {
    return MakeError(Code::kCorrupt, "{} does not hold its tensor", file.path);
  }
  Read(file, begin + bytes - probe, tail);
  if (tail == last) return {};
  return MakeError(Code::kCorrupt, "{}: the tensor's end is not its own",
                   file.path);
}

void ChaosSource::Read(const File& file, uint64_t offset,
                       std::span<std::byte> out) const {
  if (file.content != nullptr) {
    (void)file.content->Read(offset, out);
    return;
  }
  // In range, so it can be planned.
  auto plan = file.tensor.Plan(offset, out);
  for (const SourceRead& read : plan->reads()) {
    (void)contents_[read.object]->Read(read.offset, read.dest);
  }
  plan->Finish();
}

}  // namespace weightfs

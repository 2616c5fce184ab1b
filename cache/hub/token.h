// The Hub's access token, from the places where the Hub's own clients look.
//
// Thread-safety: safe for concurrent use.

#ifndef WEIGHTFS_CACHE_HUB_TOKEN_H_
#define WEIGHTFS_CACHE_HUB_TOKEN_H_

#include <atomic>
#include <optional>
#include <string>

namespace weightfs {

class TokenProvider {
 public:
  // `token_file` (--token-file), if not empty, is the only place. Else
  // HF_TOKEN, HUGGING_FACE_HUB_TOKEN, the file HF_TOKEN_PATH, $HF_HOME/token,
  // ~/.cache/huggingface/token; none if HF_HUB_DISABLE_IMPLICIT_TOKEN. The
  // environment is read once, here.
  explicit TokenProvider(const std::string& token_file = "");

  // The token now, without surrounding white space; nothing if there is none.
  // A file is read anew at every call, so a renewed token is picked up. A file
  // that cannot be read counts as no token, and is logged once.
  std::optional<std::string> Get() const;
  // Where it would come from, for messages: "HF_TOKEN", a path, or "none".
  // Never the token.
  std::string Source() const;

 private:
  std::string variable_;  // name of the variable that held `value_`, or empty
  std::string value_;
  std::string file_;  // path, or empty
  mutable std::atomic<bool> logged_{false};
};

}  // namespace weightfs

#endif  // WEIGHTFS_CACHE_HUB_TOKEN_H_

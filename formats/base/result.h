// Result<T>: a value or an Error. Every fallible function of weightfs returns
// one; no exception crosses a module.

#ifndef WEIGHTFS_FORMATS_BASE_RESULT_H_
#define WEIGHTFS_FORMATS_BASE_RESULT_H_

#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>
#include <utility>

#include "formats/base/error.h"

namespace weightfs {

template <class T = void>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using tl::expected<T, Error>::expected;
  // An Error converts as it is: `return Error(...)`.
  // NOLINTNEXTLINE(google-explicit-constructor): the point of it
  Result(Error error)
      : tl::expected<T, Error>(tl::unexpect, std::move(error)) {}
};

// Makes an Error with a formatted message.
template <class... Args>
Error MakeError(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return Error(code, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace weightfs

#define WEIGHTFS_CONCAT_INNER(a, b) a##b
#define WEIGHTFS_CONCAT(a, b) WEIGHTFS_CONCAT_INNER(a, b)

// Returns the error of `expression`, a Result of any type, if it holds one.
#define RETURN_IF_ERROR(expression)              \
  do {                                           \
    auto&& weightfs_status = (expression);       \
    if (!weightfs_status.has_value()) {          \
      return std::move(weightfs_status).error(); \
    }                                            \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()): x is F's value, or F's error is returned.
#define ASSIGN_OR_RETURN(declaration, expression)                           \
  WEIGHTFS_ASSIGN_OR_RETURN(WEIGHTFS_CONCAT(weightfs_result_, __COUNTER__), \
                            declaration, expression)
#define WEIGHTFS_ASSIGN_OR_RETURN(temporary, declaration, expression) \
  auto temporary = (expression);                                      \
  if (!temporary.has_value()) return std::move(temporary).error();    \
  declaration = std::move(temporary).value()

#endif  // WEIGHTFS_FORMATS_BASE_RESULT_H_

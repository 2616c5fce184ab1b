// A file's bytes as the test hub sends them, and the same files as a plain web
// server has them: GET /files/ORG/NAME/REVISION/ at the CDN is a page of links,
// a path below it a file, or the page of a folder. No redirect, no signature:
// for programs that know no Hub.

#ifndef WEIGHTFS_TESTS_SUPPORT_HUB_FILES_H_
#define WEIGHTFS_TESTS_SUPPORT_HUB_FILES_H_

#include <string>

#include "tests/support/hub_state.h"

namespace weightfs {

// The whole, a part (Range, If-Range), or 304 (If-None-Match). `etag` without
// quotes.
HubReply HubBytes(const TestHubRequest& request,
                  const TestHubContentPtr& content, const std::string& etag);

// REQUIRES: target.kind == kFiles. 404 for what is private or gated.
HubReply AnswerHubFiles(const TestHub::State& hub,
                        const TestHubRequest& request, const HubTarget& target);

}  // namespace weightfs

#endif  // WEIGHTFS_TESTS_SUPPORT_HUB_FILES_H_

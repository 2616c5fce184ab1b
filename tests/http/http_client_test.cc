#include "cache/http/http_client.h"

#include <dirent.h>

#include <chrono>
#include <cstdlib>
#include <future>
#include <latch>
#include <limits>
#include <set>

#include "tests/http/http_fixture.h"
#include "tests/http/raw_server.h"
#include "tests/support/matchers.h"

namespace weightfs {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// Answers once and closes.
RawServer::Script Once(std::string answer) {
  return [answer = std::move(answer)](RawConnection& connection) {
    connection.ReadHead();
    connection.Send(answer);
  };
}

size_t OpenFiles() {
  DIR* folder = ::opendir("/proc/self/fd");
  size_t count = 0;
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

// Records one request's events.
class Recorder : public HttpHandler {
 public:
  bool OnResponse(const HttpResponse& response) override {
    status = response.status;
    return !stop_at_response;
  }
  bool OnBody(std::span<const std::byte> bytes) override {
    received += bytes.size();
    if (!first_signalled_) {
      first_signalled_ = true;
      first_bytes.set_value();
    }
    return received < stop_after;
  }
  void OnDone(Result<> result) override {
    ++ends;
    done.set_value(std::move(result));
  }
  Result<> Wait() { return done.get_future().get(); }

  bool stop_at_response = false;
  uint64_t stop_after = kNoLimit;
  int status = 0;
  uint64_t received = 0;
  int ends = 0;
  std::promise<void> first_bytes;
  std::promise<Result<>> done;

 private:
  bool first_signalled_ = false;
};

TEST(HttpClientTest, SendsTheRequestAndTakesTheAnswer) {
  std::promise<std::string> head;
  RawServer server([&](RawConnection& connection) {
    head.set_value(connection.ReadHead());
    connection.Send(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Partial\r\n"
        "X-One:  padded \r\nx-one: second\r\nContent-Length: 5\r\n\r\nhello");
  });
  auto client = MakeClient();
  HttpRequest request = Get(server.Url("/a/../b%2Fc?q=1"));
  request.headers = {{"Range", "bytes=0-4"}, {"Accept-Encoding", "identity"}};
  auto reply = HttpFetch(*client, std::move(request), 100);
  ASSERT_OK(reply);
  EXPECT_EQ(reply->response.status, 206);
  EXPECT_EQ(reply->response.Header("X-ONE"), "padded");
  EXPECT_EQ(reply->response.Header("absent"), std::nullopt);
  EXPECT_EQ(reply->body, "hello");
  const std::string sent = head.get_future().get();
  EXPECT_THAT(sent, AllOf(HasSubstr("GET /a/../b%2Fc?q=1 HTTP/1.1\r\n"),
                          HasSubstr("\r\nRange: bytes=0-4\r\n"),
                          HasSubstr("\r\nAccept-Encoding: identity\r\n"),
                          HasSubstr("\r\nUser-Agent: weightfs-test\r\n"),
                          Not(HasSubstr("Authorization"))));
}

TEST(HttpClientTest, HeadHasNoBody) {
  RawServer server(Always("HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"));
  auto client = MakeClient();
  HttpRequest request = Get(server.Url("/"));
  request.method = "HEAD";
  auto reply = HttpFetch(*client, std::move(request), 10);
  ASSERT_OK(reply);
  EXPECT_EQ(reply->body, "");
}

TEST(HttpClientTest, DoesNotFollowRedirectsNorDecode) {
  RawServer server(
      Always("HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n"
             "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"));
  auto client = MakeClient();
  auto reply = HttpFetch(*client, Get(server.Url("/")), 100);
  ASSERT_OK(reply);
  EXPECT_EQ(reply->response.status, 302);
  EXPECT_EQ(reply->response.Header("Location"), "/elsewhere");
  EXPECT_EQ(reply->body, "abc");
}

TEST(HttpClientTest, KeepsConnectionsAlive) {
  RawServer server(Always("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
  auto client = MakeClient();
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK(HttpFetch(*client, Get(server.Url("/")), 100));
  }
  EXPECT_EQ(server.connections(), 1);
}

TEST(HttpClientTest, ReadsChunksAndTheirTrailer) {
  RawServer server(
      Once("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
           "3\r\nabc\r\n2\r\nde\r\n0\r\nX-Late: 1\r\n\r\n"));
  auto client = MakeClient();
  auto reply = HttpFetch(*client, Get(server.Url("/")), 100);
  ASSERT_OK(reply);
  EXPECT_EQ(reply->body, "abcde");
  EXPECT_EQ(reply->response.Header("X-Late"), std::nullopt);
}

TEST(HttpClientTest, ABodyThatEndsEarlyIsAnError) {
  auto client = MakeClient();
  for (const char* answer :
       {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "HTTP/1.1 200 OK\r\nContent-Le", ""}) {
    RawServer server(Once(answer));
    EXPECT_THAT(HttpFetch(*client, Get(server.Url("/")), 100),
                HasCode(Code::kUnavailable))
        << answer;
  }
}

TEST(HttpClientTest, ABodyIsCutAtItsContentLength) {
  RawServer server(
      Once("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdefgh"));
  auto client = MakeClient();
  auto reply = HttpFetch(*client, Get(server.Url("/")), 100);
  ASSERT_OK(reply);
  EXPECT_EQ(reply->body, "abc");
}

// A server that sends more than it announced, and keeps the connection: what is
// too much must not become the answer to the next request.
TEST(HttpClientTest, WhatIsTooMuchIsNoAnswerToTheNextRequest) {
  const std::string head = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
  RawServer server([&](RawConnection& connection) {
    for (int asked = 0; !connection.ReadHead().empty(); ++asked) {
      const bool first = connection.number() == 0 && asked == 0;
      connection.Send(head + (first ? "abc" + head + "bad" : "yes"));
    }
  });
  auto client = MakeClient();
  auto first = HttpFetch(*client, Get(server.Url("/1")), 100);
  ASSERT_OK(first);
  EXPECT_EQ(first->body, "abc");
  for (int i = 0; i < 3; ++i) {
    auto next = HttpFetch(*client, Get(server.Url("/2")), 100);
    ASSERT_OK(next);
    EXPECT_EQ(next->body, "yes");
  }
}

TEST(HttpClientTest, AResetIsAnError) {
  RawServer server([](RawConnection& connection) {
    connection.ReadHead();
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
    connection.Reset();
  });
  auto client = MakeClient();
  EXPECT_THAT(HttpFetch(*client, Get(server.Url("/")), 100),
              HasCode(Code::kUnavailable));
}

TEST(HttpClientTest, GarbageIsAnError) {
  auto client = MakeClient();
  for (const char* answer :
       {"SSH-2.0-OpenSSH_9\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}) {
    RawServer server(Once(answer));
    EXPECT_THAT(HttpFetch(*client, Get(server.Url("/")), 100),
                HasCode(Code::kUnavailable))
        << answer;
  }
}

TEST(HttpClientTest, HeadersAreCapped) {
  RawServer endless([](RawConnection& connection) {
    connection.ReadHead();
    connection.Send("HTTP/1.1 200 OK\r\n");
    const std::string line = "X-Fill: " + std::string(1000, 'a') + "\r\n";
    while (connection.Send(line)) {
    }
  });
  RawServer many([](RawConnection& connection) {
    connection.ReadHead();
    connection.Send("HTTP/1.1 200 OK\r\n");
    while (connection.Send("a: b\r\n")) {
    }
  });
  auto client = MakeClient();
  for (const RawServer* server : {&endless, &many}) {
    EXPECT_THAT(HttpFetch(*client, Get(server->Url("/")), 100),
                AllOf(HasCode(Code::kUnavailable),
                      HasMessage(HasSubstr("headers too large"))));
  }
}

TEST(HttpClientTest, RefusedConnectionsAreUnavailable) {
  uint16_t port = 0;
  {
    RawServer gone(Once(""));
    port = gone.port();
  }
  auto client = MakeClient();
  EXPECT_THAT(
      HttpFetch(*client, Get("http://127.0.0.1:" + std::to_string(port) + "/x"),
                100),
      AllOf(HasCode(Code::kUnavailable), HasMessage(HasSubstr("/x"))));
}

TEST(HttpClientTest, WhoNeverAnswersIsStalled) {
  RawServer server(
      [](RawConnection& connection) { connection.WaitForClose(); });
  auto client = MakeClient();
  HttpRequest request = Get(server.Url("/"));
  request.stall_timeout = milliseconds(100);
  EXPECT_THAT(
      HttpFetch(*client, std::move(request), 100),
      AllOf(HasCode(Code::kUnavailable), HasMessage(HasSubstr("stalled"))));
}

TEST(HttpClientTest, ABodyThatHangsIsStalled) {
  RawServer server([](RawConnection& connection) {
    connection.ReadHead();
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
    connection.WaitForClose();
  });
  auto client = MakeClient();
  HttpRequest request = Get(server.Url("/"));
  request.stall_timeout = milliseconds(100);
  EXPECT_THAT(
      HttpFetch(*client, std::move(request), 100),
      AllOf(HasCode(Code::kUnavailable), HasMessage(HasSubstr("stalled"))));
}

TEST(HttpClientTest, ATrickleBelowTheLeastSpeedIsStalled) {
  // The client's end is what stops it: `stop` only bounds a broken client.
  RawServer server([](RawConnection& connection) {
    connection.ReadHead();
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
    while (connection.Send("x")) {
      std::this_thread::sleep_for(milliseconds(5));
    }
  });
  auto client = MakeClient();
  HttpRequest request = Get(server.Url("/"));
  request.stall_timeout = milliseconds(300);
  request.stall_bytes = 10'000;
  EXPECT_THAT(
      HttpFetch(*client, std::move(request), 1'000'000),
      AllOf(HasCode(Code::kUnavailable), HasMessage(HasSubstr("stalled"))));
}

TEST(HttpClientTest, TheWholeRequestHasALimit) {
  RawServer server([](RawConnection& connection) {
    connection.ReadHead();
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
    while (connection.Send("x")) {
      std::this_thread::sleep_for(milliseconds(5));
    }
  });
  auto client = MakeClient();
  HttpRequest request = Get(server.Url("/"));
  request.total_timeout = milliseconds(200);
  EXPECT_THAT(HttpFetch(*client, std::move(request), 1'000'000),
              AllOf(HasCode(Code::kUnavailable),
                    HasMessage(HasSubstr("not done after 200 ms"))));
}

TEST(HttpClientTest, ConnectionsPerHostAreLimitedAndOthersWaitTheirTurn) {
  std::latch four(4);
  std::latch go(1);
  RawServer server([&](RawConnection& connection) {
    bool first = true;
    while (!connection.ReadHead().empty()) {
      if (first) {
        four.count_down();
        go.wait();
      }
      first = false;
      connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
  });
  auto client = MakeClient(4);
  std::vector<std::shared_ptr<Recorder>> recorders;
  for (int i = 0; i < 40; ++i) {
    recorders.push_back(std::make_shared<Recorder>());
    client->Start(Get(server.Url("/")), recorders.back());
  }
  four.wait();
  go.count_down();
  for (auto& recorder : recorders) EXPECT_OK(recorder->Wait());
  EXPECT_EQ(server.connections(), 4);
}

TEST(HttpClientTest, ARequestThatWaitsForAConnectionIsNotStalled) {
  std::latch go(1);
  RawServer server([&](RawConnection& connection) {
    while (!connection.ReadHead().empty()) {
      go.wait();
      connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    }
  });
  auto client = MakeClient(1);
  auto first = std::make_shared<Recorder>();
  client->Start(Get(server.Url("/1")), first);
  auto patient = std::make_shared<Recorder>();
  HttpRequest request = Get(server.Url("/2"));
  request.stall_timeout = milliseconds(1'000);
  client->Start(std::move(request), patient);
  // Its limit of the whole request counts while it waits.
  request = Get(server.Url("/3"));
  request.total_timeout = milliseconds(50);
  auto hurried = std::make_shared<Recorder>();
  client->Start(std::move(request), hurried);
  EXPECT_THAT(hurried->Wait(), HasCode(Code::kUnavailable));
  go.count_down();
  EXPECT_OK(first->Wait());
  EXPECT_OK(patient->Wait());
}

TEST(HttpClientTest, CancelEndsARequestInEachState) {
  RawServer server([](RawConnection& connection) {
    connection.ReadHead();
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
    connection.WaitForClose();
  });
  auto client = MakeClient(1);
  auto running = std::make_shared<Recorder>();
  const HttpId id = client->Start(Get(server.Url("/")), running);
  auto waiting = std::make_shared<Recorder>();
  const HttpId waiting_id = client->Start(Get(server.Url("/")), waiting);
  running->first_bytes.get_future().wait();
  client->Cancel(waiting_id);
  EXPECT_THAT(waiting->Wait(), HasCode(Code::kCancelled));
  client->Cancel(id);
  client->Cancel(id);
  client->Cancel(123'456);
  EXPECT_THAT(running->Wait(), HasCode(Code::kCancelled));
  EXPECT_NE(id, waiting_id);
}

TEST(HttpClientTest, HandlersStopTheirRequest) {
  RawServer server([](RawConnection& connection) {
    connection.ReadHead();
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
    const std::string block(100'000, 'x');
    while (connection.Send(block)) {
    }
  });
  auto client = MakeClient();
  auto at_response = std::make_shared<Recorder>();
  at_response->stop_at_response = true;
  client->Start(Get(server.Url("/")), at_response);
  EXPECT_THAT(at_response->Wait(), HasCode(Code::kCancelled));
  EXPECT_EQ(at_response->received, 0u);
  auto in_body = std::make_shared<Recorder>();
  in_body->stop_after = 1'000'000;
  client->Start(Get(server.Url("/")), in_body);
  EXPECT_THAT(in_body->Wait(), HasCode(Code::kCancelled));
  EXPECT_GE(in_body->received, 1'000'000u);
}

TEST(HttpClientTest, HandlersStartAndCancelOthers) {
  RawServer server(Always("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
  RawServer silent(
      [](RawConnection& connection) { connection.WaitForClose(); });
  auto client = MakeClient();
  auto victim = std::make_shared<Recorder>();
  const HttpId victim_id = client->Start(Get(silent.Url("/")), victim);
  class Chain final : public Recorder {
   public:
    bool OnBody(std::span<const std::byte> bytes) override {
      started();
      return Recorder::OnBody(bytes);
    }
    std::function<void()> started;
  };
  auto second = std::make_shared<Recorder>();
  auto first = std::make_shared<Chain>();
  first->started = [&] {
    client->Cancel(victim_id);
    client->Start(Get(server.Url("/2")), second);
  };
  client->Start(Get(server.Url("/1")), first);
  EXPECT_OK(first->Wait());
  EXPECT_OK(second->Wait());
  EXPECT_THAT(victim->Wait(), HasCode(Code::kCancelled));
}

TEST(HttpClientTest, DestructionEndsEverythingAtOnce) {
  const size_t files_before = OpenFiles();
  {
    RawServer server([](RawConnection& connection) {
      connection.ReadHead();
      connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
      connection.WaitForClose();
    });
    auto client = MakeClient(4);
    std::vector<std::shared_ptr<Recorder>> recorders;
    for (int i = 0; i < 10; ++i) {
      recorders.push_back(std::make_shared<Recorder>());
      client->Start(Get(server.Url("/")), recorders.back());
    }
    recorders[0]->first_bytes.get_future().wait();
    const auto begin = steady_clock::now();
    client.reset();
    EXPECT_LT(steady_clock::now() - begin, std::chrono::seconds(5));
    for (auto& recorder : recorders) {
      EXPECT_THAT(recorder->Wait(), HasCode(Code::kCancelled));
      EXPECT_EQ(recorder->ends, 1);
    }
  }
  EXPECT_EQ(OpenFiles(), files_before);
}

TEST(HttpClientTest, PostRunsOnTheLoopThread) {
  auto client = MakeClient();
  std::promise<std::thread::id> one;
  std::promise<std::thread::id> two;
  client->Post([&] {
    one.set_value(std::this_thread::get_id());
    client->Post([&] { two.set_value(std::this_thread::get_id()); });
  });
  const auto thread = one.get_future().get();
  EXPECT_EQ(thread, two.get_future().get());
  EXPECT_NE(thread, std::this_thread::get_id());
}

TEST(HttpClientTest, RefusesWhatMustNotBeSent) {
  RawServer server(Always("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
  auto client = MakeClient();
  HttpRequest smuggled = Get(server.Url("/"));
  smuggled.headers = {{"Authorization", "Bearer x\r\nX-Evil: 1"}};
  HttpRequest posted = Get(server.Url("/"));
  posted.method = "POST";
  for (const HttpRequest& request :
       {smuggled, posted, Get("file:///etc/passwd"), Get("ftp://127.0.0.1/x"),
        Get(""), Get("http://user:pw@127.0.0.1/")}) {
    const auto reply = HttpFetch(*client, request, 100);
    EXPECT_THAT(reply, HasCode(Code::kInvalid)) << request.url;
    EXPECT_THAT(reply, HasMessage(Not(HasSubstr("pw"))));
  }
  EXPECT_EQ(server.connections(), 0);
}

TEST(HttpClientTest, MessagesHoldNoQuery) {
  RawServer server(Once(""));
  auto client = MakeClient();
  EXPECT_THAT(
      HttpFetch(*client, Get(server.Url("/path?Signature=geheim")), 100),
      HasMessage(AllOf(HasSubstr("/path"), Not(HasSubstr("geheim")),
                       HasSubstr("127.0.0.1"))));
}

TEST(HttpClientTest, FetchRefusesABodyThatIsTooLong) {
  RawServer announced(Once("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n"));
  RawServer surprising(Once("HTTP/1.1 200 OK\r\n\r\n12345678901"));
  auto client = MakeClient();
  EXPECT_THAT(HttpFetch(*client, Get(announced.Url("/")), 10),
              HasCode(Code::kUnsupported));
  EXPECT_THAT(HttpFetch(*client, Get(surprising.Url("/")), 10),
              HasCode(Code::kUnsupported));
}

TEST(HttpClientTest, ProxiesComeFromTheEnvironment) {
  std::promise<std::string> head;
  RawServer proxy([&](RawConnection& connection) {
    head.set_value(connection.ReadHead());
    connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nproxy");
  });
  RawServer direct(
      Always("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ndirect"));
  ::setenv("http_proxy", proxy.Url("").c_str(), 1);
  ::setenv("no_proxy", "127.0.0.1", 1);
  {
    auto client = MakeClient();
    auto through = HttpFetch(*client, Get("http://hub.invalid/x"), 100);
    ASSERT_OK(through);
    EXPECT_EQ(through->body, "proxy");
    EXPECT_THAT(head.get_future().get(),
                HasSubstr("GET http://hub.invalid/x HTTP/1.1\r\n"));
    auto around = HttpFetch(*client, Get(direct.Url("/")), 100);
    ASSERT_OK(around);
    EXPECT_EQ(around->body, "direct");
  }
  ::unsetenv("http_proxy");
  ::unsetenv("no_proxy");
}

TEST(HttpClientTest, MegabytesArriveWhole) {
  const std::string block(1 << 20, 'm');
  RawServer server([&](RawConnection& connection) {
    while (!connection.ReadHead().empty()) {
      connection.Send("HTTP/1.1 200 OK\r\nContent-Length: 33554432\r\n\r\n");
      for (int i = 0; i < 32; ++i) connection.Send(block);
    }
  });
  auto client = MakeClient();
  std::vector<std::shared_ptr<Recorder>> recorders;
  for (int i = 0; i < 8; ++i) {
    recorders.push_back(std::make_shared<Recorder>());
    client->Start(Get(server.Url("/")), recorders.back());
  }
  for (auto& recorder : recorders) {
    EXPECT_OK(recorder->Wait());
    EXPECT_EQ(recorder->received, 32u << 20);
  }
}

}  // namespace
}  // namespace weightfs

/* pull PORT PATH STREAMS REPEATS HEADERS: read PATH over STREAMS connections at a time, REPEATS times one after the other,
 * each time over new connections. HEADERS are whole lines with CR LF, or "". One JSON object tells what came; `asked` and
 * `first` are when each stream of the last time asked, and had the first byte of its body, by the monotonic clock.
 * One thread; level-triggered epoll; bodies go through one buffer, as in any client that does something with them. */
#include "wire.h"
#include <stddef.h>

enum { BUFFER = 1 << 18, EVENTS = 64 };

struct stream {
  int fd, in_body;
  size_t have;
  long long left;
  double began, first, ended;
  char head[HEAD_LIMIT];
};

static char buffer[BUFFER];
static long long received;

/* Take what is there, at most one buffer. Returns 1 when the body is whole. */
static int take(struct stream *stream) {
  if (stream->in_body) {
    size_t want = stream->left < BUFFER ? (size_t)stream->left : BUFFER;
    ssize_t got = recv(stream->fd, buffer, want, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) fail("body cut with %lld bytes left: %s", stream->left, got ? strerror(errno) : "end of stream");
    if (!stream->first) stream->first = now();
    stream->left -= got;
    received += got;
    return stream->left == 0;
  }
  ssize_t got = recv(stream->fd, stream->head + stream->have, HEAD_LIMIT - 1 - stream->have, MSG_DONTWAIT);
  if (got < 0 && errno == EAGAIN) return 0;
  if (got <= 0) fail("head cut: %s", got ? strerror(errno) : "end of stream");
  stream->have += (size_t)got;
  stream->head[stream->have] = 0;
  size_t body = head_end(stream->head);
  if (!body) return 0;
  if (status_of(stream->head) != 200) fail("status %.60s", stream->head + 9);
  if ((stream->left = content_length(stream->head)) < 0) fail("no Content-Length");
  stream->left -= (long long)(stream->have - body);
  received += (long long)(stream->have - body);
  if (stream->have > body) stream->first = now();
  stream->in_body = 1;
  return stream->left == 0;
}

static void run(int port, const char *request, size_t length, struct stream *streams, int count) {
  int poll = epoll_create1(EPOLL_CLOEXEC);
  for (int i = 0; i < count; i++) {
    struct stream *stream = &streams[i];
    stream->began = now();
    stream->fd = dial(port);
    stream->in_body = 0;
    stream->have = 0;
    stream->first = 0;
    say(stream->fd, request, length);
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = stream};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, stream->fd, &wanted) < 0) fail("epoll_ctl: %s", strerror(errno));
  }
  for (int open = count; open > 0;) {
    struct epoll_event ready[EVENTS];
    int found = epoll_wait(poll, ready, EVENTS, 60000);
    if (found <= 0) fail("nothing came for a minute");
    for (int i = 0; i < found; i++) {
      struct stream *stream = ready[i].data.ptr;
      if (!take(stream)) continue;
      stream->ended = now();
      close(stream->fd);
      open--;
    }
  }
  close(poll);
}

static void tell(const char *name, const struct stream *streams, int count, size_t member) {
  printf(", \"%s\": [", name);
  for (int i = 0; i < count; i++) printf("%s%.6f", i ? ", " : "", *(const double *)((const char *)&streams[i] + member));
  printf("]");
}

int main(int argc, char **argv) {
  if (argc != 6) fail("usage: pull PORT PATH STREAMS REPEATS HEADERS");
  int port = atoi(argv[1]), count = atoi(argv[3]), repeats = atoi(argv[4]);
  char request[4096];
  size_t length = request_head(request, sizeof request, "GET", argv[2], argv[5]);
  struct stream *streams = calloc((size_t)count, sizeof *streams);
  double began = now(), fairness = 1;
  for (int turn = 0; turn < repeats; turn++) {
    run(port, request, length, streams, count);
    double fastest = 1e9, slowest = 0;
    for (int i = 0; i < count; i++) {
      double took = streams[i].ended - streams[i].began;
      if (took < fastest) fastest = took;
      if (took > slowest) slowest = took;
    }
    if (fastest / slowest < fairness) fairness = fastest / slowest;
  }
  double took = now() - began;
  printf("{\"bytes\": %lld, \"seconds\": %.6f, \"fairness\": %.4f, \"client_cpu\": %.6f", received, took, fairness,
         cpu_seconds());
  tell("asked", streams, count, offsetof(struct stream, began));
  tell("first", streams, count, offsetof(struct stream, first));
  printf("}\n");
  return 0;
}

/* ask PORT METHOD PATH CONNECTIONS SECONDS HEADERS: as many requests as are answered, one at a time on each connection,
 * which is kept where the server keeps it. Prints requests, time and latencies as one JSON object.
 *
 * Where servers have all cores, what this spends is missing there, and each time that it is woken it takes a core from
 * a server at work. So answers are gathered: who came within a millisecond of the last look waits for the next one. */
#include "wire.h"

enum { EVENTS = 64, BODY = 1 << 16, MOST = 1 << 21, GATHER_NS = 1000000 };

struct asker {
  int fd;
  size_t have;
  long long left; /* of the body; -1 while the head is read, -2 for one that ends with the connection */
  int closing;
  double asked;
  char head[HEAD_LIMIT];
};

static int port, poller, headless;
static char request[4096], scratch[BODY];
static size_t request_length;
static float *latencies;
static long answered, size_seen;

static void ask(struct asker *asker) {
  asker->have = 0;
  asker->left = -1;
  asker->asked = now();
  say(asker->fd, request, request_length);
}

static void join(struct asker *asker) {
  asker->fd = dial(port);
  struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = asker};
  if (epoll_ctl(poller, EPOLL_CTL_ADD, asker->fd, &wanted) < 0) fail("epoll_ctl: %s", strerror(errno));
}

static void whole(struct asker *asker) {
  if (answered < MOST) latencies[answered] = (float)(now() - asker->asked);
  answered++;
  if (asker->closing) {
    close(asker->fd);
    join(asker);
  }
  ask(asker);
}

/* The fields that matter, in one walk over the lines. Returns where the body begins, or 0 if the head is not whole. */
static size_t read_head(const struct asker *asker, long long *length, int *closing) {
  const char *line = asker->head, *end = asker->head + asker->have, *next;
  for (; (next = memchr(line, '\n', (size_t)(end - line))); line = next + 1) {
    if (*line == '\r') return (size_t)(next + 1 - asker->head);
    char first = *line | 32;
    if (first == 'c' && !strncasecmp(line, "content-length:", 15)) *length = atoll(line + 15);
    else if (first == 'c' && !strncasecmp(line, "connection: close", 17)) *closing = 1;
    else if (first == 't' && !strncasecmp(line, "transfer-encoding:", 18) && !headless) fail("a chunked answer");
  }
  return 0;
}

static void begin_body(struct asker *asker) {
  long long length = -1;
  int closing = 0;
  size_t body = read_head(asker, &length, &closing);
  if (!body) return;
  if (status_of(asker->head) != 200) fail("status %.60s", asker->head + 9);
  asker->closing = closing;
  if (headless) length = 0;
  if (length > size_seen) size_seen = (long)length;
  asker->left = length < 0 ? -2 : length - (long long)(asker->have - body);
  if (length >= 0 && asker->left < 0) fail("more than one answer");
}

/* All that is there: what is left behind waits for the next look. */
static void take(struct asker *asker) {
  while (asker->left) {
    int in_head = asker->left == -1;
    char *into = in_head ? asker->head + asker->have : scratch;
    ssize_t got = recv(asker->fd, into, in_head ? HEAD_LIMIT - 1 - asker->have : BODY, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got < 0) fail("no answer: %s", strerror(errno));
    if (in_head) {
      if (!got) fail("no answer: %s", asker->have ? "a head without an end" : "end of stream");
      asker->have += (size_t)got;
      asker->head[asker->have] = 0;
      begin_body(asker);
    } else if (asker->left > 0) {
      if (!got) fail("body cut");
      asker->left -= got;
    } else if (!got) {
      asker->closing = 1;
      asker->left = 0;
    }
  }
  whole(asker);
}

static int by_size(const void *one, const void *other) {
  float a = *(const float *)one, b = *(const float *)other;
  return (a > b) - (a < b);
}

int main(int argc, char **argv) {
  if (argc != 7) fail("usage: ask PORT METHOD PATH CONNECTIONS SECONDS HEADERS");
  port = atoi(argv[1]);
  headless = !strcmp(argv[2], "HEAD");
  request_length = request_head(request, sizeof request, argv[2], argv[3], argv[6]);
  int count = atoi(argv[4]);
  double seconds = atof(argv[5]);
  latencies = malloc(MOST * sizeof *latencies);
  struct asker *askers = calloc((size_t)count, sizeof *askers);
  poller = epoll_create1(EPOLL_CLOEXEC);
  double began = now();
  for (int i = 0; i < count; i++) {
    join(&askers[i]);
    ask(&askers[i]);
  }
  while (now() - began < seconds) {
    struct epoll_event ready[EVENTS];
    int found = epoll_wait(poller, ready, EVENTS, 10000);
    if (found <= 0) fail("no answer for ten seconds");
    struct timespec gathered;
    clock_gettime(CLOCK_MONOTONIC, &gathered);
    for (int i = 0; i < found; i++) take(ready[i].data.ptr);
    if ((gathered.tv_nsec += GATHER_NS) >= 1000000000) {
      gathered.tv_nsec -= 1000000000;
      gathered.tv_sec++;
    }
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &gathered, NULL);
  }
  double took = now() - began;
  if (!answered) fail("nothing was answered");
  long kept = answered < MOST ? answered : MOST;
  qsort(latencies, (size_t)kept, sizeof *latencies, by_size);
  printf("{\"requests\": %ld, \"seconds\": %.6f, \"p50\": %.6f, \"p99\": %.6f, \"max\": %.6f, \"body\": %ld, "
         "\"client_cpu\": %.6f}\n",
         answered, took, latencies[kept / 2], latencies[kept * 99 / 100], latencies[kept - 1], size_seen, cpu_seconds());
  return 0;
}

/* probe PORT PATH EVERY: ask for PATH every EVERY milliseconds over one connection, until standard input ends, and print
 * how long the answers took, in seconds, as one JSON list. A request that is late because the one before it took long
 * counts from when it should have gone out. Runs above ordinary priority where it may: it measures the server's
 * waits, not its own. */
#include "wire.h"
#include <poll.h>
#include <sched.h>

enum { MOST = 1 << 16 };

static void sleep_until(double at) {
  struct timespec until = {.tv_sec = (time_t)at, .tv_nsec = (long)((at - (double)(time_t)at) * 1e9)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static void exchange(int fd, const char *request, size_t length) {
  char head[HEAD_LIMIT];
  size_t have = 0, body = 0;
  say(fd, request, length);
  do {
    ssize_t got = recv(fd, head + have, sizeof head - 1 - have, 0);
    if (got <= 0) fail("no answer: %s", got ? strerror(errno) : "end of stream");
    have += (size_t)got;
    head[have] = 0;
    body = head_end(head);
  } while (!body || (long long)(have - body) < content_length(head));
  if (status_of(head) != 200) fail("status %.60s", head + 9);
}

int main(int argc, char **argv) {
  if (argc != 4) fail("usage: probe PORT PATH EVERY");
  struct sched_param first = {.sched_priority = 1};
  sched_setscheduler(0, SCHED_RR, &first);
  char request[1024];
  size_t length = request_head(request, sizeof request, "GET", argv[2], "");
  double every = atof(argv[3]) / 1000, *took = malloc(MOST * sizeof *took);
  int fd = dial(atoi(argv[1])), count = 0;
  struct pollfd input = {.fd = 0, .events = POLLIN};
  exchange(fd, request, length); /* the first one makes the connection */
  for (double due = now(); count < MOST && poll(&input, 1, 0) == 0; due += every) {
    sleep_until(due);
    exchange(fd, request, length);
    took[count++] = now() - due;
  }
  putchar('[');
  for (int i = 0; i < count; i++) printf("%s%.6f", i ? ", " : "", took[i]);
  puts("]");
  return 0;
}

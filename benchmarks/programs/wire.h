/* What the clients share: sockets, request heads, response heads, clocks. Everything fatal ends the program with
 * status 2 and a line on standard error: a benchmark has no use for a number from a broken run. */
#ifndef WIRE_H
#define WIRE_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_LIMIT = 16384 };

static void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vfprintf(stderr, format, args);
  va_end(args);
  fputc('\n', stderr);
  exit(2);
}

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static double cpu_seconds(void) {
  struct timespec used;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return (double)used.tv_sec + (double)used.tv_nsec * 1e-9;
}

static int dial(int port) {
  struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  if (fd < 0 || connect(fd, (struct sockaddr *)&peer, sizeof peer) < 0) fail("connect: %s", strerror(errno));
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

/* Heads are a few hundred bytes and go into an empty socket: a short write is a broken peer. */
static void say(int fd, const char *text, size_t length) {
  if (send(fd, text, length, MSG_NOSIGNAL) != (ssize_t)length) fail("send: %s", strerror(errno));
}

static size_t request_head(char *into, size_t room, const char *method, const char *path, const char *more) {
  int length = snprintf(into, room, "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n", method, path, more);
  if (length < 0 || (size_t)length >= room) fail("the request head is too long");
  return (size_t)length;
}

/* Where the body begins, or 0 if the head is not whole. `head` ends with a NUL. */
static size_t head_end(const char *head) {
  const char *end = strstr(head, "\r\n\r\n");
  return end ? (size_t)(end + 4 - head) : 0;
}

/* The value of a field of a head, or NULL. */
static const char *field(const char *head, const char *name) {
  size_t length = strlen(name);
  for (const char *line = strstr(head, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
    if (!strncasecmp(line + 2, name, length) && line[2 + length] == ':') {
      const char *value = line + 3 + length;
      while (*value == ' ') value++;
      return value;
    }
  }
  return NULL;
}

static int status_of(const char *head) { return strlen(head) > 12 ? atoi(head + 9) : 0; }

/* -1 where it is not said. */
static long long content_length(const char *head) {
  const char *value = field(head, "content-length");
  return value ? atoll(value) : -1;
}
#endif

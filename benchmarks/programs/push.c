/* push PORT METHOD FILE HEADERS PATH...: send FILE to every PATH at the same time, a connection and a thread each, by
 * sendfile, so that the client costs as little as it can. Prints one JSON object once every answer is whole. */
#include "wire.h"
#include <pthread.h>
#include <signal.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

struct upload {
  pthread_t thread;
  const char *path;
  double took;
};

static int port;
static const char *method, *file, *headers;
static off_t size;

static void answer(int fd, const char *path) {
  char head[HEAD_LIMIT];
  size_t have = 0, body = 0;
  while (!body) {
    ssize_t got = recv(fd, head + have, sizeof head - 1 - have, 0);
    if (got <= 0) fail("%s: no answer: %s", path, got ? strerror(errno) : "end of stream");
    have += (size_t)got;
    head[have] = 0;
    body = head_end(head);
  }
  if (status_of(head) / 100 != 2) fail("%s: status %.*s", path, (int)strcspn(head + 9, "\r"), head + 9);
}

static void *upload(void *argument) {
  struct upload *upload = argument;
  char more[2048], head[4096];
  snprintf(more, sizeof more, "%sContent-Type: application/octet-stream\r\nContent-Length: %lld\r\n", headers,
           (long long)size);
  double began = now();
  int in = open(file, O_RDONLY | O_CLOEXEC), fd = dial(port);
  if (in < 0) fail("%s: %s", file, strerror(errno));
  say(fd, head, request_head(head, sizeof head, method, upload->path, more));
  for (off_t at = 0; at < size;) {
    ssize_t sent = sendfile(fd, in, &at, (size_t)(size - at));
    if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) break; /* its answer says why */
    if (sent <= 0) fail("%s: sendfile: %s", upload->path, sent ? strerror(errno) : "the file shrank");
  }
  answer(fd, upload->path);
  upload->took = now() - began;
  close(fd);
  close(in);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc < 6) fail("usage: push PORT METHOD FILE HEADERS PATH...");
  struct stat found;
  signal(SIGPIPE, SIG_IGN); /* a server that refuses closes while we send */
  port = atoi(argv[1]);
  method = argv[2];
  file = argv[3];
  headers = argv[4];
  if (stat(file, &found) < 0) fail("%s: %s", file, strerror(errno));
  size = found.st_size;
  int count = argc - 5;
  struct upload *uploads = calloc((size_t)count, sizeof *uploads);
  double began = now();
  for (int i = 0; i < count; i++) {
    uploads[i].path = argv[5 + i];
    if (pthread_create(&uploads[i].thread, NULL, upload, &uploads[i])) fail("no thread");
  }
  double fastest = 1e9, slowest = 0;
  for (int i = 0; i < count; i++) {
    pthread_join(uploads[i].thread, NULL);
    if (uploads[i].took < fastest) fastest = uploads[i].took;
    if (uploads[i].took > slowest) slowest = uploads[i].took;
  }
  printf("{\"bytes\": %lld, \"seconds\": %.6f, \"fairness\": %.4f, \"client_cpu\": %.6f}\n", (long long)size * count,
         now() - began, fastest / slowest, cpu_seconds());
  return 0;
}

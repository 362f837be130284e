/* What the benchmarks talk to, behind a relay or raw: the first byte of a connection says what it wants.
 *
 *   bench_server vsock:PORT|tcp:PORT|unix:PATH …        any number of listeners
 *
 *   'e'  echo every byte             's'  swallow until EOF or COUNT bytes, then answer one byte
 *   'g'  give COUNT bytes, then close     'c'  answer one byte and close
 *   'G'  (of GET) answer HTTP 204 to whatever is asked, and close: a bridge's health probe
 *
 * 's' and 'g' are followed by COUNT as eight bytes, big-endian. One thread a connection, 256 KiB buffers.
 *
 * Build: cc -O2 -static -pthread -o bench_server bench_server.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024, BACKLOG = 1024, STACK = 64 * 1024 };

static const char no_content[] = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";

static socklen_t address(const char *spec, struct sockaddr_storage *to)
{
	memset(to, 0, sizeof *to);
	if (!strncmp(spec, "vsock:", 6)) {
		struct sockaddr_vm *a = (void *)to;
		a->svm_family = AF_VSOCK;
		a->svm_cid = VMADDR_CID_ANY;
		a->svm_port = atoi(spec + 6);
		return sizeof *a;
	}
	if (!strncmp(spec, "tcp:", 4)) {
		struct sockaddr_in *a = (void *)to;
		a->sin_family = AF_INET;
		a->sin_port = htons(atoi(spec + 4));
		a->sin_addr.s_addr = htonl(INADDR_ANY);
		return sizeof *a;
	}
	struct sockaddr_un *a = (void *)to;
	a->sun_family = AF_UNIX;
	strncpy(a->sun_path, spec + 5, sizeof a->sun_path - 1);
	unlink(a->sun_path);
	return sizeof *a;
}

static int write_all(int fd, const char *bytes, size_t n)
{
	for (ssize_t w; n; bytes += w, n -= w)
		if ((w = write(fd, bytes, n)) <= 0)
			return -1;
	return 0;
}

static uint64_t count(int fd)
{
	uint64_t n = 0;
	return recv(fd, &n, sizeof n, MSG_WAITALL) == sizeof n ? be64toh(n) : 0;
}

static void *serve(void *argument)
{
	int fd = (intptr_t)argument;
	char *buffer = malloc(BUFFER), what = 0;
	ssize_t r = read(fd, &what, 1);
	uint64_t left = r == 1 && (what == 's' || what == 'g') ? count(fd) : 0;
	if (r == 1 && what == 'e')
		while ((r = read(fd, buffer, BUFFER)) > 0 && write_all(fd, buffer, r) == 0)
			;
	memset(buffer, 'x', BUFFER);
	if (what == 'g')
		for (size_t n; left && write_all(fd, buffer, n = left < BUFFER ? left : BUFFER) == 0; left -= n)
			;
	while (what == 's' && left && (r = read(fd, buffer, left < BUFFER ? left : BUFFER)) > 0)
		left -= r;
	if (what == 'G' && read(fd, buffer, BUFFER) > 0)
		write_all(fd, no_content, sizeof no_content - 1);
	if (what == 's' || what == 'c')
		write_all(fd, "k", 1);
	close(fd);
	free(buffer);
	return NULL;
}

static void *listen_on(void *argument)
{
	struct sockaddr_storage here;
	socklen_t length = address(argument, &here);
	int one = 1, listener = socket(here.ss_family, SOCK_STREAM, 0);
	pthread_attr_t small;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&here, length) < 0 || listen(listener, BACKLOG) < 0) {
		perror(argument);
		exit(1);
	}
	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK);
	pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
	for (;;) {
		int client = accept(listener, NULL, NULL);
		pthread_t thread;
		if (client < 0)
			continue;
		if (here.ss_family == AF_INET)
			setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		if (pthread_create(&thread, &small, serve, (void *)(intptr_t)client))
			close(client);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	signal(SIGPIPE, SIG_IGN);
	for (int i = 2; i < argc; i++)
		pthread_create(&thread, NULL, listen_on, argv[i]);
	if (argc > 1)
		listen_on(argv[1]);
	return 2;
}

/* The floor for the guest's relay: one thread, epoll, no policy.
 *
 *   epoll_relay vsock:PORT|unix:PATH tcp:PORT|unix:PATH
 *
 * It accepts, connects (blocking: the target is local), and forwards in the wake-up in which it read. No hold, no peer
 * check, no limits, no logging; the end of one side closes both once its bytes are through. A relay that does its duties
 * can be at most a little slower than this.
 *
 * Build: cc -O2 -static -o epoll_relay epoll_relay.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BUFFER = 256 * 1024, EVENTS = 64, BACKLOG = 1024 };

struct side {
	struct pair *pair;
	struct side *other;
	int fd;
	char *pending; /* bytes read from here that the other side did not take yet */
	size_t start, end;
	uint32_t interest;
};

struct pair {
	struct side side[2];
	int dead;
	struct pair *next_dead;
};

static char shared[BUFFER];
static int ep;

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
		a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		return sizeof *a;
	}
	struct sockaddr_un *a = (void *)to;
	a->sun_family = AF_UNIX;
	strncpy(a->sun_path, spec + 5, sizeof a->sun_path - 1);
	return sizeof *a;
}

static void want(struct side *s, uint32_t interest)
{
	if (s->interest == interest)
		return;
	struct epoll_event e = { .events = interest, .data.ptr = s };
	epoll_ctl(ep, EPOLL_CTL_MOD, s->fd, &e);
	s->interest = interest;
}

/* Moves what the side has; 0 when the pair is at its end. */
static int forward(struct side *from)
{
	struct side *to = from->other;
	while (from->end > from->start) {
		ssize_t w = send(to->fd, from->pending + from->start, from->end - from->start, MSG_NOSIGNAL);
		if (w < 0)
			return errno == EAGAIN;
		from->start += w;
	}
	free(from->pending);
	from->pending = NULL;
	ssize_t r = recv(from->fd, shared, sizeof shared, 0);
	if (r < 0)
		return errno == EAGAIN;
	if (r == 0)
		return 0;
	ssize_t w = send(to->fd, shared, r, MSG_NOSIGNAL);
	if (w < 0 && errno != EAGAIN)
		return 0;
	if (w < 0)
		w = 0;
	if (w < r) {
		from->pending = malloc(r - w);
		memcpy(from->pending, shared + w, r - w);
		from->start = 0;
		from->end = r - w;
	}
	return 1;
}

static void settle(struct pair *p)
{
	for (int i = 0; i < 2; i++) {
		struct side *s = &p->side[i];
		want(s, (s->pending ? 0 : EPOLLIN) | (s->other->pending ? EPOLLOUT : 0));
	}
}

static void begin(int client, const struct sockaddr_storage *to, socklen_t length)
{
	int one = 1, target = socket(to->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(target, (const struct sockaddr *)to, length) < 0) {
		close(client);
		close(target);
		return;
	}
	if (to->ss_family == AF_INET)
		setsockopt(target, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	fcntl(target, F_SETFL, O_NONBLOCK);
	struct pair *p = calloc(1, sizeof *p);
	for (int i = 0; i < 2; i++) {
		p->side[i] = (struct side){ .pair = p, .other = &p->side[!i], .fd = i ? target : client, .interest = EPOLLIN };
		struct epoll_event e = { .events = EPOLLIN, .data.ptr = &p->side[i] };
		epoll_ctl(ep, EPOLL_CTL_ADD, p->side[i].fd, &e);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_storage here, there;
	struct epoll_event events[EVENTS];
	struct rlimit files;
	if (argc != 3)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &files);
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	socklen_t here_length = address(argv[1], &here), there_length = address(argv[2], &there);
	int listener = socket(here.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (here.ss_family == AF_UNIX)
		unlink(argv[1] + 5);
	if (bind(listener, (struct sockaddr *)&here, here_length) < 0 || listen(listener, BACKLOG) < 0) {
		perror("listen");
		return 1;
	}
	ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = { .events = EPOLLIN, .data.ptr = NULL };
	epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
	for (;;) {
		struct pair *dead = NULL;
		int n = epoll_wait(ep, events, EVENTS, -1);
		for (int i = 0; i < n; i++) {
			struct side *s = events[i].data.ptr;
			if (!s) {
				int client;
				while ((client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
					begin(client, &there, there_length);
				continue;
			}
			struct pair *p = s->pair;
			if (p->dead)
				continue;
			int alive = 1;
			if (events[i].events & EPOLLOUT)
				alive = forward(s->other);
			if (alive && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
				alive = forward(s);
			if (alive) {
				settle(p);
			} else {
				p->dead = 1;
				p->next_dead = dead;
				dead = p;
			}
		}
		while (dead) {
			struct pair *p = dead;
			dead = p->next_dead;
			for (int k = 0; k < 2; k++) {
				close(p->side[k].fd);
				free(p->side[k].pending);
			}
			free(p);
		}
	}
}

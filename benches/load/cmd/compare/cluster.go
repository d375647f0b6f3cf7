package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// cluster is one or several members of one kind, each on a folder of its own on the same disk.
type cluster struct {
	parent, label, bin string
	extra              []string
	members            []*server
	made               int
}

// startCluster starts that many members on empty folders and waits until each answers a linearizable read.
func startCluster(ctx context.Context, parent, label, bin string, members int, extra []string) (*cluster, error) {
	c := &cluster{parent: parent, label: label, bin: bin, extra: extra}
	for range members {
		if _, err := c.add(); err != nil {
			c.close()
			return nil, err
		}
	}
	for _, s := range c.members {
		s.configure(c.initial(), "new", extra)
		if err := s.launch(); err != nil {
			c.close()
			return nil, err
		}
	}
	if err := c.waitServing(ctx, time.Minute); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// add makes one more member, which is yet to be configured and launched.
func (c *cluster) add() (*server, error) {
	c.made++
	s, err := newServer(c.parent, c.label, fmt.Sprintf("m%d", c.made), c.bin)
	if err == nil {
		c.members = append(c.members, s)
	}
	return s, err
}

func (c *cluster) initial() string {
	var all []string
	for _, s := range c.members {
		all = append(all, s.name+"="+s.peerURL())
	}
	return strings.Join(all, ",")
}

func (c *cluster) waitServing(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, s := range c.members {
		if err := s.waitServing(ctx); err != nil {
			return fmt.Errorf("%s %s does not serve: %w; end of its log:\n%s", s.label, s.name, err, s.logTail())
		}
	}
	return nil
}

func (c *cluster) endpoints() (all []string) {
	for _, s := range c.members {
		all = append(all, s.endpoint())
	}
	return all
}

func (c *cluster) pids() string {
	var all []string
	for _, s := range c.members {
		all = append(all, fmt.Sprint(s.pid()))
	}
	return strings.Join(all, ",")
}

// client opens the official client on some endpoints.
func (c *cluster) client(endpoints ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialTimeout: 5 * time.Second})
}

// leader is the member that leads, as it says itself, and some other. With one member they are the same.
func (c *cluster) leader(ctx context.Context) (leader, follower *server, err error) {
	client, err := c.client(c.endpoints()...)
	if err != nil {
		return nil, nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		for _, s := range c.members {
			attempt, cancel := context.WithTimeout(ctx, time.Second)
			status, err := client.Status(attempt, s.endpoint())
			cancel()
			if err == nil && status.Leader == status.Header.MemberId {
				leader = s
			} else {
				follower = s
			}
		}
		if leader != nil {
			if follower == nil {
				follower = leader
			}
			return leader, follower, nil
		}
	}
	return nil, nil, errors.New("no member says that it leads")
}

// at gives the endpoints of a step: "leader", "follower", or all.
func (c *cluster) at(ctx context.Context, where string) (string, error) {
	if where == "" || len(c.members) == 1 {
		return strings.Join(c.endpoints(), ","), nil
	}
	leader, follower, err := c.leader(ctx)
	if err != nil {
		return "", err
	}
	if where == "follower" {
		return follower.endpoint(), nil
	}
	return leader.endpoint(), nil
}

// kill kills all members.
func (c *cluster) kill() {
	for _, s := range c.members {
		s.kill()
	}
}

func (c *cluster) close() {
	for _, s := range c.members {
		s.close()
	}
}

func (c *cluster) logTail() string {
	var all []string
	for _, s := range c.members {
		all = append(all, s.name+":\n"+s.logTail())
	}
	return strings.Join(all, "\n")
}

package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/rueidis"
)

const clusterSlots = 16384

// hearCluster asks all nodes who they are, and returns once the primaries of all slots have
// answered. primaries changes when they or their slots do; moving: a slot is on its way to a
// node that was not heard. Each primary speaks for itself, and one that has lost the others,
// and may have been replaced, for nobody.
func hearCluster(ctx context.Context, client rueidis.Client, under *sync.WaitGroup) (primaries string, moving bool, err error) {
	nodes := client.Nodes()
	answers := make(chan clusterAnswer, len(nodes))
	for _, node := range nodes {
		under.Go(func() { answers <- askNode(ctx, node) })
	}
	var heard rollCall
	for range len(nodes) {
		a := <-answers
		if a.err != nil { // a replica may be down, or just no longer known as one
			err = a.err
			continue
		}
		if err := heard.add(a.node); err != nil {
			return "", false, err
		}
		if heard.slots == clusterSlots {
			return heard.names(), heard.moving(), nil
		}
	}
	if err == nil {
		err = fmt.Errorf("%d slots are served by nobody", clusterSlots-heard.slots)
	}
	return "", false, err
}

// A rollCall collects the primaries that have answered.
type rollCall struct {
	primaries []clusterNode
	served    [clusterSlots]bool
	slots     int // how many are served
}

var errTwoPrimaries = errors.New("two nodes say that they serve a slot")

func (r *rollCall) add(n clusterNode) error {
	if !n.primary || len(n.slots) == 0 {
		return nil
	}
	r.primaries = append(r.primaries, n)
	for _, some := range n.slots {
		for slot := some.first; slot <= some.last; slot++ {
			if r.served[slot] {
				return errTwoPrimaries
			}
			r.served[slot] = true
			r.slots++
		}
	}
	return nil
}

// names returns the same for the same primaries with the same slots.
func (r *rollCall) names() string {
	lines := make([]string, len(r.primaries))
	for i, p := range r.primaries {
		lines[i] = p.line
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// moving says whether a slot is on its way to a node that has none yet: what is changed
// there already is not told by those who have answered.
func (r *rollCall) moving() bool {
	for _, from := range r.primaries {
		for _, to := range from.movingTo {
			if !slices.ContainsFunc(r.primaries, func(p clusterNode) bool { return p.id == to }) {
				return true
			}
		}
	}
	return false
}

type clusterAnswer struct {
	node clusterNode
	err  error
}

var errLostCluster = errors.New("a node has lost the rest of the cluster")

func askNode(ctx context.Context, node rueidis.Client) clusterAnswer {
	answers := node.DoMulti(ctx, node.B().ClusterInfo().Build(), node.B().ClusterNodes().Build())
	info, err := answers[0].ToString()
	if err != nil {
		return clusterAnswer{err: err}
	}
	if !strings.Contains(info, "cluster_state:ok") {
		return clusterAnswer{err: errLostCluster}
	}
	nodes, err := answers[1].ToString()
	if err != nil {
		return clusterAnswer{err: err}
	}
	n, err := parseSelf(nodes)
	return clusterAnswer{n, err}
}

// A clusterNode is a node's own line of CLUSTER NODES.
type clusterNode struct {
	line     string
	id       string
	primary  bool
	slots    []slotRange
	movingTo []string // ids of nodes that slots are moving to
}

type slotRange struct{ first, last int }

var errNodes = errors.New("CLUSTER NODES is not understood")

// parseSelf reads the line of the node that was asked:
//
//	ID ADDRESS FLAGS PRIMARY PING PONG EPOCH LINK [SLOT|FIRST-LAST|[SLOT->-ID]|[SLOT-<-ID]]...
func parseSelf(nodes string) (clusterNode, error) {
	for line := range strings.Lines(nodes) {
		fields := strings.Fields(line)
		if len(fields) < 8 {
			return clusterNode{}, errNodes
		}
		flags := strings.Split(fields[2], ",")
		if !slices.Contains(flags, "myself") {
			continue
		}
		n := clusterNode{id: fields[0], primary: slices.Contains(flags, "master")}
		// Of a node itself the times of ping and pong are zero, or mean nothing.
		n.line = strings.Join(append([]string{n.id, fields[6]}, fields[8:]...), " ")
		for _, f := range fields[8:] {
			if moving, ok := strings.CutPrefix(f, "["); ok {
				if _, to, out := strings.Cut(strings.TrimSuffix(moving, "]"), "->-"); out {
					n.movingTo = append(n.movingTo, to)
				}
				continue
			}
			first, last, isRange := strings.Cut(f, "-")
			if !isRange {
				last = first
			}
			r := slotRange{}
			var err1, err2 error
			r.first, err1 = strconv.Atoi(first)
			r.last, err2 = strconv.Atoi(last)
			if err1 != nil || err2 != nil || r.first < 0 || r.last >= clusterSlots {
				return clusterNode{}, errNodes
			}
			n.slots = append(n.slots, r)
		}
		return n, nil
	}
	return clusterNode{}, errNodes
}

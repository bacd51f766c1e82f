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

// hearCluster asks all nodes who they are, and returns once the primaries of all slots
// have answered: who serves which slots, and whether one is moving to a node that serves
// none yet. Each primary speaks for itself, and one that has lost the others, and may
// have been replaced, for nobody.
func hearCluster(ctx context.Context, client rueidis.Client, under *sync.WaitGroup) (string, bool, error) {
	nodes := client.Nodes()
	answers := make(chan clusterAnswer, len(nodes))
	for _, node := range nodes {
		under.Go(func() { answers <- askNode(ctx, node) })
	}
	var (
		primaries []clusterNode
		served    [clusterSlots]bool
		missing   = clusterSlots
		last      error
	)
	for range len(nodes) {
		a := <-answers
		if a.err != nil {
			last = a.err
			continue
		}
		if !a.node.primary {
			continue
		}
		for _, r := range a.node.slots {
			for slot := r.first; slot <= r.last; slot++ {
				if served[slot] {
					return "", false, errors.New("two primaries serve one slot")
				}
				served[slot] = true
				missing--
			}
		}
		if len(a.node.slots) > 0 {
			primaries = append(primaries, a.node)
		}
		if missing == 0 {
			names, moving := summary(primaries)
			return names, moving, nil
		}
	}
	if last == nil {
		last = fmt.Errorf("%d slots are served by nobody", missing)
	}
	return "", false, last
}

// summary names what changes when the slots or their primaries do.
func summary(primaries []clusterNode) (names string, moving bool) {
	lines, ids := make([]string, len(primaries)), make(map[string]bool, len(primaries))
	for i, p := range primaries {
		lines[i], ids[p.id] = p.line, true
	}
	slices.Sort(lines)
	for _, p := range primaries {
		for _, id := range p.movingTo {
			moving = moving || !ids[id]
		}
	}
	return strings.Join(lines, "\n"), moving
}

type clusterAnswer struct {
	node clusterNode
	err  error
}

func askNode(ctx context.Context, node rueidis.Client) clusterAnswer {
	answers := node.DoMulti(ctx, node.B().ClusterInfo().Build(), node.B().ClusterNodes().Build())
	info, err := answers[0].ToString()
	if err != nil {
		return clusterAnswer{err: err}
	}
	if !strings.Contains(info, "cluster_state:ok") {
		return clusterAnswer{err: errors.New("a node has lost the cluster")}
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

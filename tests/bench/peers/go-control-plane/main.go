// Serves resources with go-control-plane's xDS server, for the benchmarks.
//
// usage: go-control-plane pass|linear FILE
//
// FILE holds the resources of the start, standard input brings changes, both as records: index and length as little-endian
// uint32, then so many bytes of google.protobuf.Any. Changes that wait together are applied together. The first line of output says where it listens.
//
// pass: a cache of our own that hands the server ready responses around shared Anys, which is the least that the library
// can do for a state-of-the-world push. Its SnapshotCache knows only Envoy's own types.
//
// linear: LinearCache. It sends the full state only of Envoy's Clusters and Listeners and wraps resources in the type that was
// asked for, so each resource is the Any inside a Cluster.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

type record struct {
	index int
	any   *anypb.Any
}

// store is what a change is made to, in one of the two caches.
type store interface {
	cache.Cache
	update(changes []record) error
}

func read(in io.Reader) (record, error) {
	var head [8]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return record{}, err
	}
	body := make([]byte, binary.LittleEndian.Uint32(head[4:]))
	if _, err := io.ReadFull(in, body); err != nil {
		return record{}, err
	}
	r := record{index: int(binary.LittleEndian.Uint32(head[:])), any: new(anypb.Any)}
	return r, proto.Unmarshal(body, r.any)
}

// pass hands out all resources at once.
type pass struct {
	mu        sync.Mutex
	version   int
	resources []*anypb.Any
	parked    map[int]parked
	next      int
}

type parked struct {
	request *cache.Request
	out     chan cache.Response
}

// answer needs a response of its own: the server writes the nonce into it.
func (p *pass) answer(request *cache.Request, out chan cache.Response) {
	out <- &cache.PassthroughResponse{Request: request, DiscoveryResponse: &discovery.DiscoveryResponse{
		VersionInfo: strconv.Itoa(p.version), TypeUrl: request.TypeUrl, Resources: p.resources}}
}

func (p *pass) CreateWatch(request *cache.Request, _ cache.Subscription, out chan cache.Response) (func(), error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if request.VersionInfo != strconv.Itoa(p.version) {
		p.answer(request, out)
		return nil, nil
	}
	id := p.next
	p.next++
	p.parked[id] = parked{request, out}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.parked, id)
	}, nil
}

func (p *pass) CreateDeltaWatch(*cache.DeltaRequest, cache.Subscription, chan cache.DeltaResponse) (func(), error) {
	return nil, errors.New("not implemented")
}

func (p *pass) Fetch(context.Context, *cache.Request) (cache.Response, error) {
	return nil, errors.New("not implemented")
}

func (p *pass) update(changes []record) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resources = slices.Clone(p.resources)
	for _, change := range changes {
		for change.index >= len(p.resources) {
			p.resources = append(p.resources, nil)
		}
		p.resources[change.index] = change.any
	}
	p.version++
	for id, watch := range p.parked {
		p.answer(watch.request, watch.out)
		delete(p.parked, id)
	}
	return nil
}

// linear is the library's cache.
type linear struct{ *cache.LinearCache }

func (l linear) update(changes []record) error {
	resources := make(map[string]types.Resource, len(changes))
	for _, change := range changes {
		name := fmt.Sprintf("service%05d", change.index)
		resources[name] = &cluster.Cluster{
			Name: name, TypedExtensionProtocolOptions: map[string]*anypb.Any{"resource": change.any}}
	}
	return l.UpdateResources(resources, nil)
}

func run() error {
	if len(os.Args) != 3 {
		return errors.New("usage: go-control-plane pass|linear FILE")
	}
	var served store = &pass{parked: map[int]parked{}}
	if os.Args[1] == "linear" {
		served = linear{cache.NewLinearCache(resource.ClusterType)}
	}
	file, err := os.Open(os.Args[2])
	if err != nil {
		return err
	}
	var initial []record
	for in := bufio.NewReader(file); ; {
		r, err := read(in)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		initial = append(initial, r)
	}
	if err := served.update(initial); err != nil {
		return err
	}
	initial = nil

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	grpcServer := grpc.NewServer(grpc.MaxConcurrentStreams(1000))
	discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, server.NewServer(context.Background(), served, nil))
	go func() { log.Fatal(grpcServer.Serve(listener)) }()
	fmt.Printf("{\"mox\":%q}\n", listener.Addr())

	changes := make(chan record, 1<<16)
	go func() {
		defer close(changes)
		for in := bufio.NewReader(os.Stdin); ; {
			r, err := read(in)
			if err != nil {
				return
			}
			changes <- r
		}
	}()
	for first := range changes {
		batch := []record{first}
		for len(changes) > 0 {
			batch = append(batch, <-changes)
		}
		if err := served.update(batch); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

// Command adsc follows MoX servers with istiod's own client, one for each address as istiod has one for each of its sources.
//
// usage: adsc HOST:PORT...
//
// On stdout goes one line of JSON whenever something has changed: whether every client is synced, the ServiceEntries of
// all their stores, how many names are in two, and every deletion so far. Istio's log goes to stderr.
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"istio.io/istio/pilot/pkg/config/memory"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pkg/adsc"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/gvk"
	istiolog "istio.io/istio/pkg/log"
)

// poll is how often the stores are looked at.
const poll = 5 * time.Millisecond

type entry struct {
	Version     string            `json:"version"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	// Spec is encoded deterministically, and that in base64.
	Spec string `json:"spec"`
}

type state struct {
	Synced  bool             `json:"synced"`
	Entries map[string]entry `json:"entries"`
	Twice   int              `json:"twice"`
	Deleted []string         `json:"deleted"`
}

// recorder is a store that remembers what was deleted from it.
type recorder struct {
	model.ConfigStore
	mutex   sync.Mutex
	deleted []string
}

func (r *recorder) Delete(kind config.GroupVersionKind, name, namespace string, version *string) error {
	if kind == gvk.ServiceEntry {
		r.mutex.Lock()
		r.deleted = append(r.deleted, namespace+"/"+name)
		r.mutex.Unlock()
	}
	return r.ConfigStore.Delete(kind, name, namespace, version)
}

type source struct {
	client *adsc.ADSC
	store  *recorder
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: adsc HOST:PORT...")
		os.Exit(2)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "adsc:", err)
		os.Exit(1)
	}
}

func run(addresses []string) error {
	options := istiolog.DefaultOptions()
	options.OutputPaths = []string{"stderr"}
	if err := istiolog.Configure(options); err != nil {
		return err
	}
	var sources []source
	for _, address := range addresses {
		s, err := connect(address)
		if err != nil {
			return fmt.Errorf("%s: %w", address, err)
		}
		sources = append(sources, s)
	}
	var last string
	for {
		now, err := observe(sources)
		if err != nil {
			return err
		}
		line, err := json.Marshal(now)
		if err != nil {
			return err
		}
		if string(line) != last {
			last = string(line)
			if _, err := fmt.Println(last); err != nil {
				return err
			}
		}
		time.Sleep(poll)
	}
}

// connect does what istiod's `initConfigSources` does.
func connect(address string) (source, error) {
	client, err := adsc.New(address, &adsc.ADSConfig{
		InitialDiscoveryRequests: adsc.ConfigInitialRequests(),
		Config: adsc.Config{
			Namespace: "istio-system",
			Workload:  "istiod-0",
			Meta:      model.NodeMetadata{Generator: "api"}.ToStruct(),
			GrpcOpts:  []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		},
	})
	if err != nil {
		return source{}, err
	}
	store := &recorder{ConfigStore: memory.Make(collections.Pilot)}
	client.Store = store
	return source{client, store}, client.Run()
}

func observe(sources []source) (state, error) {
	now := state{Synced: true, Entries: map[string]entry{}, Deleted: []string{}}
	for _, s := range sources {
		now.Synced = now.Synced && s.client.HasSynced()
		for _, c := range s.store.List(gvk.ServiceEntry, "") {
			message, ok := c.Spec.(proto.Message)
			if !ok {
				return now, fmt.Errorf("%s/%s is a %T", c.Namespace, c.Name, c.Spec)
			}
			spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
			if err != nil {
				return now, err
			}
			name := strings.Join([]string{c.Namespace, c.Name}, "/")
			if _, there := now.Entries[name]; there {
				now.Twice++
			}
			now.Entries[name] = entry{c.ResourceVersion, c.Labels, c.Annotations, base64.StdEncoding.EncodeToString(spec)}
		}
		s.store.mutex.Lock()
		now.Deleted = append(now.Deleted, s.store.deleted...)
		s.store.mutex.Unlock()
	}
	return now, nil
}

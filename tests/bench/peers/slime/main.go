// Serves resources with slime's istio-mcp, for the benchmarks.
//
// usage: slime FILE
//
// FILE holds the resources of the start, standard input brings changes, both as records: index and length as little-endian
// uint32, then so many bytes of google.protobuf.Any. Changes that wait together are applied together. The first line of output says where it listens.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/gogo/protobuf/proto"
	"github.com/gogo/protobuf/types"
	"google.golang.org/grpc"
	mcpapi "istio.io/api/mcp/v1alpha1"
	_ "istio.io/api/networking/v1alpha3"
	"istio.io/istio-mcp/pkg/config/schema/resource"
	"istio.io/istio-mcp/pkg/mcp/xds"
	"istio.io/istio-mcp/pkg/model"
	"istio.io/pkg/log"
)

type record struct {
	index  int
	config model.Config
}

func decode(body []byte) (model.Config, error) {
	var outer types.Any
	var envelope mcpapi.Resource
	var spec types.DynamicAny
	if err := proto.Unmarshal(body, &outer); err != nil {
		return model.Config{}, err
	}
	if err := types.UnmarshalAny(&outer, &envelope); err != nil {
		return model.Config{}, err
	}
	if err := types.UnmarshalAny(envelope.Body, &spec); err != nil {
		return model.Config{}, err
	}
	created, err := types.TimestampFromProto(envelope.Metadata.CreateTime)
	if err != nil {
		return model.Config{}, err
	}
	namespace, name, _ := strings.Cut(envelope.Metadata.Name, "/")
	return model.Config{
		ConfigMeta: model.ConfigMeta{
			GroupVersionKind:  resource.GroupVersionKind{Group: "networking.istio.io", Version: "v1alpha3", Kind: "ServiceEntry"},
			Namespace:         namespace,
			Name:              name,
			ResourceVersion:   envelope.Metadata.Version,
			CreationTimestamp: created,
			Labels:            envelope.Metadata.Labels,
			Annotations:       envelope.Metadata.Annotations,
		},
		Spec: spec.Message,
	}, nil
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
	config, err := decode(body)
	return record{int(binary.LittleEndian.Uint32(head[:])), config}, err
}

func run() error {
	if len(os.Args) != 2 {
		return errors.New("usage: slime FILE")
	}
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"}
	options.SetOutputLevel(log.DefaultScopeName, log.WarnLevel)
	if err := log.Configure(options); err != nil {
		return err
	}
	for _, scope := range log.Scopes() {
		scope.SetOutputLevel(log.WarnLevel)
	}

	file, err := os.Open(os.Args[1])
	if err != nil {
		return err
	}
	var configs []model.Config
	for in := bufio.NewReader(file); ; {
		r, err := read(in)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		configs = append(configs, r.config)
	}
	if len(configs) == 0 {
		return errors.New("the file holds no resources")
	}
	namespace := configs[0].Namespace
	store := model.NewSimpleConfigStore()
	version := 1
	store.Update(namespace, model.MakeSimpleConfigSnapshot(strconv.Itoa(version), configs))
	server := xds.NewServer(xds.DefaultServerOptions())
	server.SetConfigStore(store)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	grpcServer := grpc.NewServer()
	server.Register(grpcServer)
	go func() { stdlog.Fatal(grpcServer.Serve(listener)) }()
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
		configs = slices.Clone(configs)
		configs[first.index] = first.config
		for len(changes) > 0 {
			next := <-changes
			configs[next.index] = next.config
		}
		version++
		store.Update(namespace, model.MakeSimpleConfigSnapshot(strconv.Itoa(version), configs))
		server.NotifyPush(nil)
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		stdlog.Fatal(err)
	}
}

// Command validate says what Istio's own validation makes of resources.
//
// On stdin come encoded `google.protobuf.Any`s as a DiscoveryResponse carries them, each behind its length (4 bytes, big
// endian). On stdout goes one line for each, in order: "ok", or why istiod would not take it. A resource goes the way of
// istiod's MoX client (`pkg/adsc`, `handleMCP`) into its store (`pilot/pkg/config/memory`).
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	mcp "istio.io/api/mcp/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/validation"
)

// revision is istiod's own where nobody set one.
const revision = "default"

func main() {
	if err := run(bufio.NewReaderSize(os.Stdin, 1<<20), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "validate:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, stdout io.Writer) error {
	out := bufio.NewWriterSize(stdout, 1<<20)
	for {
		var length uint32
		if err := binary.Read(in, binary.BigEndian, &length); errors.Is(err, io.EOF) {
			return out.Flush()
		} else if err != nil {
			return fmt.Errorf("the length of an input: %w", err)
		}
		input := make([]byte, length)
		if _, err := io.ReadFull(in, input); err != nil {
			return fmt.Errorf("an input of %d bytes: %w", length, err)
		}
		verdict := "ok"
		if err := check(input); err != nil {
			verdict = "refused: " + strings.Join(strings.Fields(err.Error()), " ")
		}
		if _, err := fmt.Fprintln(out, verdict); err != nil {
			return err
		}
	}
}

func check(input []byte) error {
	var wrapped anypb.Any
	if err := proto.Unmarshal(input, &wrapped); err != nil {
		return err
	}
	var resource mcp.Resource
	if err := wrapped.UnmarshalTo(&resource); err != nil {
		return err
	}
	if resource.Metadata == nil {
		return errors.New("no metadata")
	}
	name := strings.Split(resource.Metadata.Name, "/")
	if len(name) != 2 {
		return fmt.Errorf("invalid name %s", resource.Metadata.Name)
	}
	spec, err := resource.Body.UnmarshalNew()
	if err != nil {
		return err
	}
	cfg := config.Config{
		Meta: config.Meta{
			Namespace: name[0], Name: name[1],
			Labels: resource.Metadata.Labels, Annotations: resource.Metadata.Annotations,
		},
		Spec: spec,
	}
	if !config.ObjectInRevision(&cfg, revision) {
		return errors.New("dropped: it is for another revision")
	}
	switch spec.(type) {
	case *networking.ServiceEntry:
		_, err = validation.ValidateServiceEntry(cfg)
	case *networking.WorkloadEntry:
		_, err = validation.ValidateWorkloadEntry(cfg)
	case *networking.DestinationRule:
		_, err = validation.ValidateDestinationRule(cfg)
	default:
		err = fmt.Errorf("no validation for %T", spec)
	}
	return err
}

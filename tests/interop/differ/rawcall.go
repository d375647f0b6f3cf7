package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"kvd.dev/interop/proc"
)

// rawCall is a unary gRPC call written by hand, for headers that the Go client does not let through.
func rawCall(ctx context.Context, srv *proc.Server, method string, req proto.Message, headers map[string]string) (codes.Code, string, error) {
	transport := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	if srv.TLS != nil {
		transport = &http2.Transport{TLSClientConfig: srv.TLS.Client.Clone()}
	}
	defer transport.CloseIdleConnections()
	payload, err := proto.Marshal(req)
	if err != nil {
		return 0, "", err
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(payload)))
	hreq, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL()+method, bytes.NewReader(append(frame, payload...)))
	if err != nil {
		return 0, "", err
	}
	hreq.Header.Set("Content-Type", "application/grpc")
	hreq.Header.Set("Te", "trailers")
	for k, v := range headers {
		hreq.Header.Set(k, v)
	}
	resp, err := transport.RoundTrip(hreq)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, "", err
	}
	trailer := resp.Trailer
	if trailer.Get("Grpc-Status") == "" {
		trailer = resp.Header // an answer of trailers only
	}
	code, err := strconv.Atoi(trailer.Get("Grpc-Status"))
	if err != nil {
		return 0, "", err
	}
	message, err := url.PathUnescape(trailer.Get("Grpc-Message"))
	return codes.Code(code), message, err
}

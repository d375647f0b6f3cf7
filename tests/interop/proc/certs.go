package proc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// MakeTLS writes a certificate authority, a server certificate for 127.0.0.1 and a client certificate into dir.
func MakeTLS(dir string) (*TLSFiles, error) {
	ca, err := newCertificate(nil, &x509.Certificate{
		Subject: pkix.Name{CommonName: "interop CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	if err != nil {
		return nil, err
	}
	server, err := newCertificate(ca, &x509.Certificate{
		Subject: pkix.Name{CommonName: "interop server"}, KeyUsage: x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		// A server is also the client of its own gateway.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	client, err := newClientCertificate(ca, "interop client")
	if err != nil {
		return nil, err
	}
	files := &TLSFiles{
		Cert: filepath.Join(dir, "server.crt"), Key: filepath.Join(dir, "server.key"), TrustedCA: filepath.Join(dir, "ca.crt"),
		ClientCert: filepath.Join(dir, "client.crt"), ClientKey: filepath.Join(dir, "client.key"),
		ca: ca,
	}
	for path, block := range map[string]*pem.Block{
		files.TrustedCA:  {Type: "CERTIFICATE", Bytes: ca.der},
		files.Cert:       {Type: "CERTIFICATE", Bytes: server.der},
		files.Key:        {Type: "EC PRIVATE KEY", Bytes: server.keyDER},
		files.ClientCert: {Type: "CERTIFICATE", Bytes: client.der},
		files.ClientKey:  {Type: "EC PRIVATE KEY", Bytes: client.keyDER},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, err
		}
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	files.Client = &tls.Config{
		RootCAs:      roots,
		Certificates: []tls.Certificate{{Certificate: [][]byte{client.der}, PrivateKey: client.key}},
	}
	return files, nil
}

type certificate struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	der    []byte
	keyDER []byte
}

func newClientCertificate(ca *certificate, name string) (*certificate, error) {
	return newCertificate(ca, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// newCertificate signs template with the issuer, or with its own key when there is none.
func newCertificate(issuer *certificate, template *x509.Certificate) (*certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return nil, err
	}
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(24 * time.Hour)
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &certificate{cert, key, der, keyDER}, nil
}

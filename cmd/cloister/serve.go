package main

func (m *monitor) serve() error { return nil }

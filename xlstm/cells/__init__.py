"""The maths of the cells, forward beside backward.

The table gives the papers' symbols for our letters. A suffix 0 marks the state before a step, a
prefix `d` a gradient, and `~` a pre-activation. Capitals span all steps of a chunk or a sequence.

    ours          in the papers            meaning
    ------------  -----------------------  -----------------------------------------------------
    x, h, y       x_t, h_t                 input and output of a step; y is h of all steps
    Wx, Wh, b     W, R (or U), b           weights of x and of h, bias

    LSTM (Hochreiter & Schmidhuber 1997, Gers et al. 2000), gates in the order i o f g
    i, o, f       i_t, o_t, f_t            input, output and forget gate
    g             c~_t, g_t or z_t         candidate
    c, u          c_t, tanh(c_t)           cell state, and its activation
    p             w_ci, w_co, w_cf         peepholes

    GRU (Cho et al. 2014), gates in the order z r n
    z, r          z_t, r_t                 update and reset gate; h = (1 - z) n + z h0
    n             h~_t                     candidate
    m             U h_t-1                  product of h and the candidate's weight, times r

    minGRU (Feng et al. 2024), gates in the order z n, and minLSTM, f i n
    z, f, i       z_t, f'_t, i'_t          update gate; forget and input gate over their sum
    n             h~_t                     candidate
    a, b                                   coefficients of h = a h0 + b

    sLSTM (Beck et al. 2024, eqs. 8 to 18), gates in the order i f z o
    i, f          i'_t, f'_t               input and forget gate, divided by exp(m)
    z, o          z_t, o_t                 cell input and output gate
    c, n, m       c_t, n_t, m_t            cell state, normaliser (both over exp(m)), stabiliser

    mLSTM (Beck et al. 2024, eqs. 19 to 27)
    q, k, v       q_t, k_t, v_t            query, key (over sqrt(K) in the cell) and value
    i~, f~        i~_t, f~_t               pre-activations of the gates, one number a head
    i1, f1        i'_t, f'_t               gates divided by exp(m)
    C, n, m       C_t^T, n_t, m_t          matrix memory (K, V), normaliser, stabiliser, likewise
    s, den        n_t^T q_t, max{...}      denominator of h
"""
